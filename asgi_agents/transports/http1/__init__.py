"""An HTTP/1.1 client for one kind of request: a POST whose answer is read whole. On asyncio; needs httptools 0.6.4.

``request`` encodes a request, ``answer`` parses an answer (no I/O in either); ``connection`` has one connection on
asyncio's transports, ``connecting`` opens it, and ``pool`` keeps the idle ones of one event loop.
"""
