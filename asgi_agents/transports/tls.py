"""TLS towards an agent."""

import os
import ssl

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
    if chain:
        path, key, password = chain
        try:
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(path, key, password or "")
        except OSError as exc:
            raise ConfigurationError(
                f"{where}: cert={path!r}, expected a certificate and its key in PEM, and the key's password: {exc}"
            ) from exc
    return context


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
        return ssl.create_default_context(cafile=verify)
    except OSError as exc:
        raise ConfigurationError(
            f"{where}: verify={verify!r}, expected a PEM file, or a directory of them: {exc}"
        ) from exc
