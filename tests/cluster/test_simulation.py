"""The simulator, compared with invariants of any cluster, and with sums that can be done by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.simulation.command import simulate as command
from cluster.simulation.figures import Figures
from cluster.simulation.growth import rows, shown
from cluster.simulation.parameters import LEASE, BadParameter, Parameters
from cluster.simulation.run import simulate
from cluster.simulation.site import Popularity
from wsgi_isr.cache.tag_versions import Mode
from wsgi_isr.config.settings import Config

RATES = ("renders", "epoch_reads", "page_gets", "tag_reads", "lock_writes", "trips", "bytes")


def test_the_same_seed_gives_the_same_figures_and_another_one_gives_others() -> None:
    parameters = Parameters(pages=200, rate=400, revalidate=3, invalidations=1, failing=0.1, duration=8)
    one = simulate(parameters)
    assert simulate(parameters).as_json() == one.as_json()
    assert simulate(Parameters(**{**vars(parameters), "seed": 2})).as_json() != one.as_json()


def test_the_random_numbers_of_others_are_left_as_they_were() -> None:
    random.seed(7)
    simulate(Parameters(duration=1, failing=0.5, revalidate=1))
    drawn = random.random()
    random.seed(7)
    assert drawn == random.random()


small = st.builds(
    Parameters,
    instances=st.integers(1, 6),
    workers=st.integers(1, 3),
    nodes=st.integers(1, 4),
    pages=st.integers(1, 60),
    zipf=st.sampled_from([0.0, 0.8, 1.2]),
    rate=st.floats(20, 400),
    revalidate=st.sampled_from([None, 0.5, 2.0]),
    expire=st.sampled_from([None, 2.5]),
    coherence=st.sampled_from([0.0, 0.1, 0.5]),
    render=st.sampled_from([0.01, 0.3, 6.0]),
    invalidations=st.sampled_from([0.0, 1.0, 5.0]),
    fan_out=st.integers(1, 20),
    mode=st.sampled_from(list(Mode)),
    local_cache_bytes=st.sampled_from([0, 100_000, 10_000_000]),
    cold=st.booleans(),
    duration=st.just(5.0),
    seed=st.integers(0, 1000),
    follow=st.sampled_from([None, 1, 2]),
)


@settings(max_examples=60)
@given(small)
def test_without_faults_each_window_has_one_render(parameters: Parameters) -> None:
    figures = simulate(parameters)
    assert set(figures.renders_per_window) <= {1}
    # Renders in progress at the end have not closed their window.
    assert sum(figures.renders_per_window.values()) <= figures.renders_in_all
    assert figures.renders_in_all - sum(figures.renders_per_window.values()) <= parameters.pages
    if figures.herd.most is not None:
        assert 1 <= figures.herd.most <= parameters.processes


@settings(max_examples=60)
@given(small)
def test_nothing_is_served_as_fresh_longer_after_its_invalidation_than_coherence(parameters: Parameters) -> None:
    figures = simulate(parameters)
    assert figures.outdated_longest <= parameters.coherence
    if parameters.coherence == 0:
        assert figures.outdated_hits == 0


@settings(max_examples=60)
@given(small)
def test_every_request_is_answered_in_one_way_or_still_waits(parameters: Parameters) -> None:
    figures = simulate(parameters)
    answered = figures.served_from_l1 + figures.served_from_nodes + figures.served_stale + figures.waited
    assert answered <= figures.requests * 1.0001
    if parameters.render < 1:
        waiting = parameters.rate * 4 * (parameters.render + 0.3)  # Poisson, and few processes may be followed
        assert (figures.requests - answered) * parameters.duration <= waiting + 40 * parameters.processes


@pytest.mark.parametrize("coherence", [0.05, 0.2])
def test_busy_processes_read_the_epochs_of_every_node_once_in_each_interval(coherence: float) -> None:
    parameters = Parameters(instances=10, workers=4, nodes=3, pages=50, rate=40_000, coherence=coherence, duration=5)
    figures = simulate(parameters)
    # An epoch expires, and the next request polls: 1 / 1000 s later, on average.
    once = coherence + parameters.processes / parameters.rate
    assert figures.epoch_reads == pytest.approx(40 * 3 / once, rel=0.03)
    assert figures.epoch_reads == pytest.approx(40 * 3 / coherence, rel=0.05)
    assert max(figures.epoch_reads_per_node) == pytest.approx(figures.epoch_reads / 3)


def test_idle_processes_read_them_with_every_request() -> None:
    figures = simulate(Parameters(instances=500, workers=2, nodes=3, pages=50, rate=100, revalidate=None, duration=30))
    assert figures.epoch_reads == pytest.approx(3 * figures.requests, rel=0.02)


def test_without_coherence_each_request_asks() -> None:
    figures = simulate(Parameters(coherence=0, pages=20, revalidate=None, nodes=2, rate=300, duration=5))
    assert figures.epoch_reads == pytest.approx(2 * figures.requests)


@pytest.mark.parametrize("follow", [1, 8])
def test_renders_are_as_many_as_a_renewal_process_has(follow: int) -> None:
    parameters = Parameters(pages=300, rate=200, revalidate=5, render=0.2, duration=200, follow=follow)
    popularity = Popularity(parameters.pages, parameters.zipf)
    # A page is young for that long, then a request has to come, then the page is rendered.
    expected = sum(1 / (5 + 1 / (200 * popularity.share(number)) + 0.2) for number in range(300))
    assert simulate(parameters).renders == pytest.approx(expected, rel=0.03)


def test_what_is_not_followed_is_counted_as_if_it_were(figure: Callable[[str], None]) -> None:
    def mean(follow: int) -> list[float]:
        given = {"instances": 10, "pages": 2000, "rate": 800, "revalidate": 6, "invalidations": 1, "fan_out": 50}
        runs = [simulate(Parameters(follow=follow, seed=seed, duration=25, **given)) for seed in (1, 2, 3)]
        return [sum(getattr(run, name) for run in runs) / 3 for name in RATES]

    every, few = mean(20), mean(4)
    figure("; ".join(f"{name}: {a:.0f}, {b:.0f}" for name, a, b in zip(RATES, every, few, strict=True)))
    assert few == pytest.approx(every, rel=0.05)


def test_everybody_who_comes_while_a_popular_page_is_rendered_is_in_the_herd() -> None:
    figures = simulate(
        Parameters(instances=200, workers=2, pages=1, rate=4000, revalidate=2, render=0.5, duration=20, cold=True)
    )
    # 2,000 requests in half a second, for 400 processes: 1 - exp(-5) of them ask at least once.
    assert figures.herd.median == pytest.approx(400 * 0.993, rel=0.02)
    assert figures.renders_per_window == {1: 8}


def test_an_invalidation_is_seen_by_busy_processes_within_coherence() -> None:
    figures = simulate(Parameters(instances=10, pages=100, rate=8000, invalidations=2, duration=10, coherence=0.2))
    assert figures.last_sees.most is not None
    assert 0.15 < figures.last_sees.most < 0.2 + 0.05
    assert figures.first_sees.median is not None
    assert figures.first_sees.median < 0.05


def test_after_failures_a_window_has_several_renders_and_their_pauses_grow() -> None:
    figures = simulate(Parameters(pages=20, rate=400, revalidate=1, failing=0.5, duration=60))
    assert figures.renders_failed > 0
    assert max(figures.renders_per_window) > 1
    # Back-off for 1 s and more instead of a render at every request.
    assert figures.renders < 20


def test_a_small_l1_is_filled_from_the_nodes_again_and_again() -> None:
    large, small = (
        simulate(Parameters(pages=500, rate=500, revalidate=None, local_cache_bytes=size, duration=20))
        for size in (64 << 20, 3 << 18)
    )
    assert small.l1_pages < 50 < large.l1_pages
    assert small.page_gets > 2 * large.page_gets


def test_2000_instances_and_a_million_pages_do_not_take_long(figure: Callable[[str], None]) -> None:
    began = monotonic()
    figures = simulate(
        Parameters(instances=2000, pages=1_000_000, nodes=10, rate=40_000, revalidate=3600, duration=6, follow=400)
    )
    seconds = monotonic() - began
    figure(f"6 s of 4,000 processes in {seconds:.1f} s")
    assert figures.epoch_reads == pytest.approx(4000 * 10 / (0.1 + 0.1), rel=0.1)
    assert set(figures.renders_per_window) == {1}


def test_the_lease_is_the_one_of_a_rule_without_options() -> None:
    policy = Config.load({"/": 60}, {"store": "memory://"}).rules.policies["/"]
    assert policy.lease == LEASE
    assert policy.lock_timeout == Parameters().wait


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"pages": 0}, "pages=0"),
        ({"rate": -1}, "rate=-1"),
        ({"duration": float("inf")}, "duration=inf"),
        ({"revalidate": 0}, "revalidate=0"),
        ({"revalidate": 60, "expire": 1}, "expire=1"),
        ({"follow": 0}, "follow=0"),
        ({"failing": 2}, "failing=2"),
    ],
)
def test_an_impossible_parameter_is_named(given: dict[str, float], named: str) -> None:
    with pytest.raises(BadParameter, match=named):
        Parameters(**given)


# The command ---------------------------------------------------------------------------------------------

SHORT = ("--duration", "3", "--pages", "100", "--rate", "200", "--revalidate", "1")


def test_the_command_prints_a_table() -> None:
    done = CliRunner().invoke(command, [*SHORT, "--invalidations", "2"])
    assert done.exit_code == 0
    for line in ("epoch reads/s", "renders per window: 1 in", "herd, processes", "fresh after an invalidation"):
        assert line in done.stdout


def test_the_command_prints_json_for_machines() -> None:
    done = CliRunner().invoke(command, [*SHORT, "--json", "--revalidate", "never"])
    found = json.loads(done.stdout)
    assert found["parameters"]["revalidate"] is None
    assert found.keys() == set(Figures._fields)
    assert [second["at"] for second in found["seconds"]] == [1, 2, 3]


def test_the_command_draws_a_plot(tmp_path: Path) -> None:
    path = f"{tmp_path}/plot.svg"
    assert CliRunner().invoke(command, [*SHORT, "--svg", path]).exit_code == 0
    drawn = ElementTree.parse(path).getroot()
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(drawn.findall("{*}polyline")) == 4


def test_the_command_says_which_option_is_wrong() -> None:
    done = CliRunner().invoke(command, ["--pages", "0"])
    assert done.exit_code == 2
    assert "pages=0" in done.stderr


@pytest.mark.parametrize(("axis", "number"), [("instances", 0), ("nodes", 1), ("invalidations", 1)])
def test_the_plan_has_the_figures_that_the_simulator_prints(axis: str, number: int) -> None:
    row = list(rows(axis))[number]
    plan = (Path(__file__).parents[2] / "cluster" / "PLAN.md").read_text()
    assert shown(f"{row.factor:,}", simulate(row.parameters)) in plan
