# SPDX-License-Identifier: Apache-2.0
"""Manifests: what is read, and the line for each thing that is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import model as m
from controller.manifest import ManifestError, parse, verify
from controller.model import Kind
from controller.plan import plan
from controller.view import ClusterView

GOOD = """\
# a small overlay
kind: TrustDomain
name: app
---
kind: Network
name: blue
vni: 100
subnets: [10.1.0.0/16, "fd00:1::/64"]
gateways:
  - 10.1.0.1
excluded: [10.1.0.2-10.1.0.9]
---
kind: Host
name: h1
---
kind: Endpoint
name: web0
network: blue
trust_domain: app
mac: 12:34:56:12:34:56
ips: [10.1.0.10]
labels: {tier: web, on: "1"}
---
kind: Policy
name: sql
action: allow
from: {labels: {tier: web}}
to:
  endpoints: [db0]
l4:
  - protocol: tcp
    ports: [5432, 8000-8099]
---
"""


def test_a_manifest_is_read() -> None:
    manifest = parse({"a.yaml": GOOD})
    assert [m.key_of(item) for item in manifest.objects] == [
        (Kind.TRUST_DOMAIN, "app"),
        (Kind.NETWORK, "blue"),
        (Kind.HOST, "h1"),
        (Kind.ENDPOINT, "web0"),
        (Kind.POLICY, "sql"),
    ]
    web = manifest.objects[3]
    assert isinstance(web, m.Endpoint)
    assert (web.mac, web.labels) == ("12:34:56:12:34:56", (("on", "1"), ("tier", "web")))
    verify(manifest, ClusterView(manifest.objects), [m.key_of(item) for item in manifest.objects])


NET = "kind: Network\nname: n\n"
WRONG = [
    ("a: [", "a.yaml:2:1: this is no YAML: did not find expected node content"),
    ("a: \x00", "a.yaml:1: this is no YAML: control characters are not allowed"),
    ("- 1\n", "a.yaml:1:1: [1] is not an object with fields, such as kind and name"),
    ("name: x\n", "a.yaml:1:1: kind: it is missing: one of Endpoint, Host, Network, Policy, TrustDomain"),
    ("kind: Netwrok\nname: x\n", "a.yaml:1:1: kind: 'Netwrok' is no kind: did you mean Network?"),
    (NET + "vnii: 5\n", "a.yaml:3:1: vnii: no such field: did you mean vni?"),
    (NET, "a.yaml:1:1: vni: it is missing"),
    (NET + "vni: many\n", "a.yaml:3:1: vni: 'many' is not a whole number from 1 to 16777215"),
    (NET + "vni: 5\nvni: 6\n", "a.yaml:4:1: vni: it stands there twice"),
    (
        NET + "vni: 5\nsubnets:\n  - 10.0.0.0/8\n  - 10.1.2.3/16\n",
        "a.yaml:6:5: subnets[1]: 10.1.2.3/16 has bits set beyond its prefix: did you mean 10.1.0.0/16?",
    ),
    (NET + "vni: &v 5\nmtu: *v\n", "a.yaml:4:1: mtu: aliases are not supported: write it out"),
    (
        NET + "vni: !!python/name:os.system x\n",
        "a.yaml:3:1: vni: the tag 'tag:yaml.org,2002:python/name:os.system' is not supported: leave it out",
    ),
    (NET + "? [a]\n: 5\n", "a.yaml:3:3: a field's name is a text"),
    ("kind: Host\nname: h\nstate: up\n", "a.yaml:3:1: state: hosts report it: leave it out"),
    (
        "kind: TrustDomain\nname: a\n---\nkind: TrustDomain\nname: a\n",
        "a.yaml:5:1: name: a second TrustDomain a, the first is at a.yaml:1:1",
    ),
    (
        "kind: Policy\nname: p\naction: alow\n",
        "a.yaml:3:1: action: 'alow' is none of its values: did you mean allow?",
    ),
    (
        "kind: Policy\nname: p\naction: allow\nl4:\n- protocol: tcp\n  port: [80]\n",
        "a.yaml:6:3: l4[0].port: no such field: did you mean ports?",
    ),
]


@pytest.mark.parametrize(("text", "words"), WRONG)
def test_what_is_wrong_is_led_to(text: str, words: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse({"a.yaml": text})
    assert caught.value.problems == (words,)


def test_each_document_says_what_is_wrong_with_it() -> None:
    with pytest.raises(ManifestError) as caught:
        parse({"a.yaml": "kind: X\n---\nkind: Host\nname: h\n---\nname: 1\n", "b.yaml": "kind: Host\n"})
    assert [line.split(": ")[0] for line in caught.value.problems] == ["a.yaml:1:1", "a.yaml:6:1", "b.yaml:1:1"]


@given(st.text(max_size=30) | st.text(st.sampled_from("kind: Host\n-[]{}&*!|>'\"#?,~\t"), max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse({"a.yaml": text})
    except ManifestError as error:
        assert all(line.startswith("a.yaml") and "\n" not in line for line in error.problems)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ManifestError) as caught:
        parse({"a.yaml": "[" * 900})
    assert str(caught.value) == "a.yaml:1:21: this is no YAML: lists and objects are nested more than 20 deep"
    # Newer versions of libyaml find this before anything can be counted.
    with pytest.raises(ManifestError, match=r"this is no YAML: .*nest"):
        parse({"a.yaml": "[" * 100_000})


BASE = parse(
    {
        "base.yaml": GOOD
        + "kind: Host\nname: h2\n---\n"
        + "kind: Endpoint\nname: db0\nnetwork: blue\nips: [10.1.0.20]\nmac: 02:00:00:00:00:20\n"
    }
).objects
BETWEEN = [
    ("kind: Network\nname: red\nvni: 100\n", "x.yaml:3:1: vni: 100 is network blue's: choose another"),
    (
        "kind: Network\nname: red\nvni: 5\nsubnets: [10.9.0.0/24, 10.1.3.0/24]\n",
        "x.yaml:4:24: subnets[1]: 10.1.3.0/24 overlaps 10.1.0.0/16 of network blue: choose another",
    ),
    (
        "kind: Network\nname: a\nvni: 5\nsubnets: [10.0.0.0/8]\n",
        "x.yaml:4:11: subnets[0]: 10.0.0.0/8 overlaps 10.1.0.0/16 of network blue: choose another",
    ),
    ("kind: Endpoint\nname: e\nnetwork: blu\n", "x.yaml:3:1: network: there is no network blu: did you mean blue?"),
    (
        "kind: Endpoint\nname: e\nnetwork: blue\ntrust_domain: ap\nhost: h3\n",
        "x.yaml:4:1: trust_domain: there is no trust domain ap: did you mean app?",
    ),
    (
        "kind: Endpoint\nname: e\nnetwork: blue\nips: [10.2.0.1]\n",
        "x.yaml:4:7: ips[0]: 10.2.0.1 is not in network blue (10.1.0.0/16, fd00:1::/64)",
    ),
    (
        "kind: Endpoint\nname: e\nnetwork: blue\nips: [10.1.0.20]\n",
        "x.yaml:4:7: ips[0]: 10.1.0.20 is endpoint db0's in network blue: choose another",
    ),
    (
        "kind: Endpoint\nname: e\nnetwork: blue\nmac: 02:00:00:00:00:20\n",
        "x.yaml:4:1: mac: 02:00:00:00:00:20 is endpoint db0's in network blue: choose another, or leave it out",
    ),
    (
        "kind: Policy\nname: p\naction: deny\nfrom:\n  networks: [bleu]\n",
        "x.yaml:5:3: from.networks: there is no network bleu: did you mean blue?",
    ),
    (
        "kind: Network\nname: blue\nvni: 100\nsubnets: [10.1.0.0/28]\n",
        "Endpoint db0, which exists: ips[0]: 10.1.0.20 is not in network blue (10.1.0.0/28)",
    ),
]


@pytest.mark.parametrize(("text", "words"), BETWEEN)
def test_what_does_not_go_with_what_exists_is_led_to(text: str, words: str) -> None:
    manifest = parse({"x.yaml": text})
    made = plan(ClusterView(BASE), manifest.objects)
    with pytest.raises(ManifestError) as caught:
        verify(manifest, made.after, [step.change.key for step in made.steps])
    assert str(caught.value) == words


def test_what_is_still_named_stays() -> None:
    manifest = parse({"x.yaml": "\n---\n".join(["kind: Endpoint\nname: web0\nnetwork: blue\ntrust_domain: app"])})
    current = ClusterView(BASE)
    made = plan(
        current, [*current.objects[Kind.ENDPOINT].values(), *current.objects[Kind.NETWORK].values()], prune=True
    )
    with pytest.raises(ManifestError) as caught:
        verify(manifest, made.after, [step.change.key for step in made.steps])
    assert caught.value.problems == ("x.yaml:4:1: trust_domain: there is no trust domain app: there is none",)
