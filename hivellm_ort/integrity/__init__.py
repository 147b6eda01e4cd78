"""Signatures of packages, keys and trust."""

from hivellm_ort.integrity.keyfiles import generate_key, read_public_key
from hivellm_ort.integrity.signing import SignedPackage, sign
from hivellm_ort.integrity.trust import Policy, Trust, check
from hivellm_ort.integrity.truststore import TrustStore
from hivellm_ort.integrity.verdict import Status, Verdict
from hivellm_ort.integrity.verification import verify

__all__ = [
    "Policy",
    "SignedPackage",
    "Status",
    "Trust",
    "TrustStore",
    "Verdict",
    "check",
    "generate_key",
    "read_public_key",
    "sign",
    "verify",
]
