"""TLS as docs/security.md has it: a certificate in the serve config, on real Ray Serve."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import httpx
import pytest
import trustme
import yaml

from raysys.client import Client
from raysys.cluster import ray_session
from raysys.config import parse_settings
from raysys.stages.deploy import cluster, deploy
from raysys.stages.deploy_plan import DeploySettings, plan
from tests.serving.shop import publish_shop

LOCAL = Path(__file__).parents[2] / "serve_configs" / "local.yaml"


@pytest.mark.slow
def test_a_certificate_in_the_serve_config_is_waited_for_told_and_answered_with(
    tmp_path: Path,
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    chain, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    registry, bundle = publish_shop(tmp_path / "registry", with_encoder=False)
    content = yaml.safe_load(LOCAL.read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    content["http_options"] |= {"port": port, "ssl_certfile": str(chain), "ssl_keyfile": str(key)}
    content["applications"][0]["args"] |= {"registry": str(registry.root)}
    settings = parse_settings(DeploySettings, content, where="local.yaml")
    from ray import serve

    with ray_session(dashboard=True), cluster() as (dashboard, _):
        deployment = deploy(*plan(settings, None), dashboard)
        assert deployment.address == f"https://127.0.0.1:{port}"
        assert deployment.addresses["recommend"].startswith("https://")
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        with Client(deployment.address, verify=trusting) as client:
            answer = client.recommend(user_id="u1", k=5)
        assert answer.bundle == bundle and len(answer.items) == 5
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=30)
        serve.shutdown()
