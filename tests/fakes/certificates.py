"""Certificates that sign themselves, made by openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def self_signed(folder: Path, subject: str = "IP:127.0.0.1") -> tuple[Path, Path]:
    """cert.pem and key.pem in that folder, valid for two days; RuntimeError says what to install.

    `subject` is whom it is for, as openssl writes it: `DNS:` or `IP:` and the name.
    """
    if shutil.which("openssl") is None:
        raise RuntimeError("these tests need openssl (Debian: apt-get install openssl)")
    folder.mkdir(exist_ok=True)
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        + ["-nodes", "-days", "2", "-subj", "/CN=engine", "-addext", f"subjectAltName={subject}"]
        + ["-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    return cert, key
