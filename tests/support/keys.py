"""Keys and certificates for clients that prove themselves by one."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

__all__ = ["certificate", "key"]


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


def certificate(path: Path, name: str) -> None:
    """Write a self-signed certificate for ``name`` to ``path``, and its key beside it as ``.key``."""
    made = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(made.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(made, hashes.SHA256())
    )
    path.write_bytes(signed.public_bytes(Encoding.PEM))
    path.with_suffix(".key").touch(mode=0o600)
    path.with_suffix(".key").write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
