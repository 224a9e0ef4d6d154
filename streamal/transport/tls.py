"""TLS towards a broker, looked at by itself: whether our files can be used, and why a handshake does not come about.

Kafka clients tell of a failed handshake as of any lost connection. One more connection of our own finds out the cause.
The options have kafka-python's names.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from typing import Final

from streamal.errors import ConfigError

PROBE: Final = 2.0
"""Seconds for a connection that only finds something out."""
MISMATCH: Final = "check transport.security.protocol, or the port in transport.bootstrap_servers"


def encrypts(security: Mapping[str, object]) -> bool:
    """Say whether these options ask for TLS."""
    return security.get("security_protocol") in ("SSL", "SASL_SSL")


def tls_context(security: Mapping[str, object]) -> ssl.SSLContext:
    """Return what kafka-python checks a broker against: host names always.

    Raises:
        ConfigError: a file cannot be read, or is no PEM file of its kind.
    """
    authorities, certificate, key = (security.get(f"ssl_{name}file") for name in ("ca", "cert", "key"))
    context, keys = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "ca_file"
    try:
        if authorities:
            context.load_verify_locations(str(authorities))
        else:
            context.load_default_certs()
        keys = "cert_file and key_file"
        if certificate:
            context.load_cert_chain(str(certificate), str(key), "")
    except OSError as error:  # that of ssl is one too
        came = f"{authorities!r}" if keys == "ca_file" else f"{certificate!r} and {key!r}"
        message = (
            f"transport.security, {keys}: expected readable PEM files, and a key without a password that belongs to "
            f"its certificate, came {came} ({error.strerror or error}); check paths, modes and contents"
        )
        raise ConfigError(message) from None
    return context


def trusting_context() -> ssl.SSLContext:
    """Return what speaks TLS with anybody, to find out who does; nothing is ever said in it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def examine(host: str, port: int, security: Mapping[str, object]) -> str:
    """Return why TLS lets no connection come about, with the cure; "" if that is not the reason."""
    place, expected = f"{host}:{port}", encrypts(security)
    context = tls_context(security) if expected else trusting_context()
    try:
        with (
            socket.create_connection((host, port), PROBE) as raw,
            context.wrap_socket(raw, server_hostname=host) as tls,
        ):
            if not expected:
                return f"{place} speaks TLS, and transport.security.protocol says that it does not: set SSL or SASL_SSL"
            tls.recv(1)  # with TLS 1.3 a refused certificate shows after the handshake
    except TimeoutError:
        return ""
    except ssl.SSLCertVerificationError as error:
        return (
            f"the certificate of {place} is not trusted: {error.verify_message}; transport.security.ca_file must hold "
            "the authority that signed it, and transport.bootstrap_servers the name that it is made out to"
        )
    except (ssl.SSLError, ConnectionResetError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        if not expected:
            return ""
        if "ALERT" in reason:
            return (
                f"{place} ended the TLS handshake with {reason}: it wants a client certificate of an authority that it "
                "trusts; set transport.security.cert_file and key_file, or ask for a certificate that fits"
            )
        return f"{place} does not speak TLS ({reason}): {MISMATCH}"
    except OSError:
        return ""
    return ""
