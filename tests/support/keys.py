"""Keys and certificates of clients and servers."""

import json
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

__all__ = ["certificate", "key", "server_context"]


def key(path: Path, kind: str = "ES256") -> dict[str, Any]:
    """Write a private key as PEM to ``path``; return its public half as a JWK."""
    made: Any
    if kind == "RS256":
        made = rsa.generate_private_key(65537, 2048)
        public = RSAAlgorithm.to_jwk(made.public_key())
    elif kind == "EdDSA":
        made = ed25519.Ed25519PrivateKey.generate()
        public = OKPAlgorithm.to_jwk(made.public_key())
    else:
        made = ec.generate_private_key(ec.SECP256R1())
        public = ECAlgorithm.to_jwk(made.public_key())
    path.touch(mode=0o600)
    path.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return {**json.loads(public), "use": "sig", "alg": kind}


def certificate(path: Path, *names: str, issuer: Path | None = None, lifetime: timedelta = timedelta(days=1)) -> None:
    """Write a certificate for ``names`` to ``path``, and its key beside it as ``.key``; self-signed without ``issuer``."""
    made = ec.generate_private_key(ec.SECP256R1())
    subject = signer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    signing: Any = made
    if issuer is not None:
        signer = x509.load_pem_x509_certificate(issuer.read_bytes()).subject
        signing = load_pem_private_key(issuer.with_suffix(".key").read_bytes(), None)
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer)
        .public_key(made.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(signing, hashes.SHA256())
    )
    path.write_bytes(signed.public_bytes(Encoding.PEM))
    path.with_suffix(".key").touch(mode=0o600)
    path.with_suffix(".key").write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def server_context(path: Path, *names: str, **options: Any) -> ssl.SSLContext:
    """Write a certificate as ``certificate`` does; return the context of a server with it."""
    certificate(path, *names, **options)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, path.with_suffix(".key"))
    return context
