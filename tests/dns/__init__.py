"""A DNS server on the loopback interface, and the system's resolver asking it.

Which server the resolver of the C library asks stands in ``/etc/resolv.conf``, always with port 53. So all of it runs
in namespaces of its own, of users, mounts and networks, which Linux lets anybody make (``unshare``).
"""
