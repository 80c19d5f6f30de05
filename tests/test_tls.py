"""Stores behind TLS: the right certificate is taken, any other is refused with an error that says so."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
import servers
import trustme
from server_contract import state
from tcp_proxy import TCPProxy

from kvpersist import StoreError
from kvpersist.testing.faces import Face, FaceFixtures

AUTHORITY = trustme.CA()
STRANGER = trustme.CA()
CERTIFICATE = AUTHORITY.issue_cert("127.0.0.1")


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CERTIFICATE.configure_cert(context)
    bouncer = servers.new_pgbouncer(
        servers.new_postgresql(),
        "client_tls_sslmode = require\nclient_tls_key_file = key.pem\nclient_tls_cert_file = chain.pem",
        files={
            "key.pem": CERTIFICATE.private_key_pem.bytes(),
            "chain.pem": b"".join(each.bytes() for each in CERTIFICATE.cert_chain_pems),
        },
    )
    with (
        TCPProxy(servers.new_redis().port, tls=context) as redis,
        TCPProxy(servers.new_mongodb().port, tls=context) as mongodb,
    ):
        yield {"rediss": redis.port, "mongodb": mongodb.port, "postgresql": bouncer.port}


@pytest.fixture(params=["rediss", "mongodb", "postgresql"])
def scheme(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


OPTIONS = {
    "rediss": {"ssl_ca_certs": "{ca}", "timeout": "2"},
    "mongodb": {"tls": "true", "directConnection": "true", "tlsCAFile": "{ca}", "timeout": "2"},
    "postgresql": {"sslmode": "verify-full", "sslrootcert": "{ca}", "prepare": "no", "timeout": "2"},
}


class TestTLS(FaceFixtures):
    def url(self, scheme: str, ports: dict[str, int], host: str, authority: trustme.CA, folder: Path) -> str:
        authority.cert_pem.write_to_path(folder / "ca.pem")
        options = {name: value.format(ca=folder / "ca.pem") for name, value in OPTIONS[scheme].items()}
        user = "postgres@" if scheme == "postgresql" else ""
        return f"{scheme}://{user}{host}:{ports[scheme]}{'/postgres' if user else '/'}?{urlencode(options)}"

    def test_a_known_authority(self, face: Face, scheme: str, ports: dict[str, int], tmp_path: Path) -> None:
        persister = face.persister(self.url(scheme, ports, "127.0.0.1", AUTHORITY, tmp_path))
        partition = f"p{face.asynchronous}"
        persister.save(partition, "a", 1, "step", state("x" * 100_000), "completed")
        assert persister.load(partition, "a")["state"]["n"] == "x" * 100_000

    @pytest.mark.parametrize(("host", "authority"), [("127.0.0.1", STRANGER), ("localhost", AUTHORITY)])
    def test_another_is_refused(
        self, face: Face, scheme: str, ports: dict[str, int], host: str, authority: trustme.CA, tmp_path: Path
    ) -> None:
        persister = face.persister(self.url(scheme, ports, host, authority, tmp_path))
        with pytest.raises(StoreError, match=r"(?i)certificate"):
            persister.save("p", "a", 1, "step", state(1), "completed")
