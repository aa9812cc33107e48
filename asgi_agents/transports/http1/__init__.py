"""An HTTP/1.1 client for requests whose answers are read whole. On asyncio; needs httptools 0.6.4.

``request`` encodes the head of a request, ``answer`` parses an answer (no I/O in either); ``connection`` has one
connection on asyncio's transports, ``connecting`` opens it, and ``pool`` keeps the idle ones of one event loop.
"""
