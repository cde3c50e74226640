"""TLS as configured: of our listeners, and towards the key service."""

import ssl

from authsvc.client.channel import ClientTls, load_certificate
from httpbridge.config import Config


def server_tls(config: Config) -> ssl.SSLContext | None:
    """Return what a listener needs to speak TLS, None for plain HTTP; raise ConfigurationError."""
    if config.tls_cert is None or config.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # whatever this interpreter's default is
    context.set_alpn_protocols(["http/1.1"])
    load_certificate(context, config.tls_cert, config.tls_key, ("HTTPBRIDGE_TLS_CERT", "HTTPBRIDGE_TLS_KEY"))
    return context


def key_service_tls(config: Config) -> ClientTls | None:
    """Return what a client of the key service needs to speak TLS, None for plaintext."""
    if config.key_service_ca is None:
        return None
    variables = ("HTTPBRIDGE_KEY_SERVICE_CA", "HTTPBRIDGE_KEY_SERVICE_CERT", "HTTPBRIDGE_KEY_SERVICE_CERT_KEY")
    return ClientTls(config.key_service_ca, config.key_service_cert, config.key_service_cert_key, variables=variables)
