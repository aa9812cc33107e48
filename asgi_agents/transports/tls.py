"""TLS towards an agent."""

import os
import ssl
import stat

from msgspec import Struct

from ..errors import ConfigurationError

ClientCertificate = str | tuple[str, str] | tuple[str, str, str]


def client_context(where: str, verify: object, cert: object) -> ssl.SSLContext:
    """An SSLContext from a user's ``verify`` and ``cert``; ``where`` begins the messages.

    To be made once for all connections: reading the authorities takes longer than a call.
    """
    chain = _parse_cert(where, cert)
    if isinstance(verify, ssl.SSLContext):
        if chain:
            raise ConfigurationError(f"{where}: cert beside an SSLContext, expected verify.load_cert_chain(…)")
        return verify
    context = _trusting(where, verify)
    _load_chain(where, context, cert)
    return context


def _load_chain(where: str, context: ssl.SSLContext, cert: object) -> None:
    chain = _parse_cert(where, cert)
    if chain:
        path, key, password = chain
        try:
            for file in (path, key or path):
                _check_readable(file)
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(path, key, password or "")
        except (OSError, ValueError) as exc:
            raise ConfigurationError(
                f"{where}: cert={path!r}, expected a certificate and its key in PEM, and the key's password: {exc}"
            ) from exc


class PemFiles(Struct, frozen=True):
    """Certificates and a key, in PEM, for libraries that have a TLS of their own."""

    authorities: bytes
    certificate: bytes | None = None
    key: bytes | None = None


def pem_files(where: str, verify: object, cert: object) -> PemFiles:
    """What :func:`client_context` takes, for a library that always verifies and has no use for an SSLContext."""
    if isinstance(verify, ssl.SSLContext) or verify is False:
        raise ConfigurationError(f"{where}: verify={verify!r}, expected True or a path: gRPC's library has its own TLS")
    # It finds what is wrong with the files, and says so.
    context = client_context(where, verify, cert)
    return PemFiles(_authorities(verify, context), *_chain(where, cert))


def server_pem_files(where: str, verify: object, cert: object) -> PemFiles:
    """The same for a server. ``verify``: whom clients need a certificate from; None: they need none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if verify is None else _trusting(where, verify)
    _load_chain(where, context, cert)
    return PemFiles(b"" if verify is None else _authorities(verify, context), *_chain(where, cert))


def _chain(where: str, cert: object) -> tuple[bytes | None, bytes | None]:
    chain = _parse_cert(where, cert)
    if chain is None:
        return None, None
    path, key_path, _ = chain
    key = _read(key_path or path)
    if b"ENCRYPTED" in key:
        raise ConfigurationError(f"{where}: cert: the key has a password, expected one without for gRPC's library")
    return _read(path), key


def _authorities(verify: object, context: ssl.SSLContext) -> bytes:
    if not isinstance(verify, str):
        return "".join(map(ssl.DER_cert_to_PEM_cert, context.get_ca_certs(binary_form=True))).encode()
    if not os.path.isdir(verify):
        return _read(verify)
    files = {os.path.realpath(entry) for entry in os.scandir(verify) if entry.is_file()}
    return b"\n".join(data for data in map(_read, sorted(files)) if b"-----BEGIN CERTIFICATE-----" in data)


def _check_readable(path: str) -> None:
    """Raise OSError or ValueError for what is no regular file: to read a pipe or a device may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is no regular file")


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _parse_cert(where: str, given: object) -> tuple[str, str | None, str | None] | None:
    match given:
        case None:
            return None
        case str(path):
            return path, None, None
        case (str(path), str(key)):
            return path, key, None
        case (str(path), str(key), str(password)):
            return path, key, password
    # Not the value: there may be a password in it.
    raise ConfigurationError(f"{where}: cert, expected a path, (certificate, key) or (certificate, key, password)")


def _trusting(where: str, verify: object) -> ssl.SSLContext:
    if isinstance(verify, bool):
        # Imported here because importing httpx takes long, and most transports never come here.
        import httpx

        return httpx.create_ssl_context(verify=verify)
    if not isinstance(verify, str):
        raise ConfigurationError(f"{where}: verify={verify!r}, expected True, False, a path or an ssl.SSLContext")
    try:
        if os.path.isdir(verify):
            return ssl.create_default_context(capath=verify)
        _check_readable(verify)
        return ssl.create_default_context(cafile=verify)
    except (OSError, ValueError) as exc:
        raise ConfigurationError(
            f"{where}: verify={verify!r}, expected a PEM file, or a directory of them: {exc}"
        ) from exc
