# scenario: guest=bare cpus=2 timeout=180
"""A VM at a breakpoint is sent to another process over TLS, with certificates on both sides."""

import subprocess
import tempfile

from chvmove import *

ADDRESS = "127.0.0.1"


def openssl(directory: str, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


def certificates() -> str:
    """An authority and one certificate for either side, on the host."""
    there = host_path("tls")
    run_on_host(f"mkdir {there}")
    with tempfile.TemporaryDirectory() as here:
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        authority = ("-keyout", "ca-key.pem", "-out", "ca-cert.pem", "-subj", "/CN=authority", "-days", "2")
        openssl(here, "req", "-x509", *key, *authority)
        for side in ("server", "client"):
            with open(os.path.join(here, "extensions"), "w") as extensions:
                extensions.write(f"subjectAltName=IP:{ADDRESS}\nbasicConstraints=CA:FALSE\n")
            openssl(here, "req", *key, "-keyout", f"{side}-key.pem", "-out", f"{side}.csr", "-subj", f"/CN={side}")
            signed = ("-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-extfile", "extensions")
            openssl(here, "x509", "-req", "-in", f"{side}.csr", "-out", f"{side}-cert.pem", "-days", "2", *signed)
        for name in ("ca-cert", "server-cert", "server-key", "client-cert", "client-key"):
            with open(os.path.join(here, f"{name}.pem"), "rb") as file:
                put_file(f"{there}/{name}.pem", file.read())
    return there


def body() -> None:
    try:
        tls = {"tls_dir": certificates()}
    except FileNotFoundError:
        raise Skip("openssl is not installed") from None
    stop_moves(url=f"tcp:{ADDRESS}:41002", there=tls, here=tls)


run(body)
