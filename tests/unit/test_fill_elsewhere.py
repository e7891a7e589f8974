"""Pages that another process renders for this one."""

from __future__ import annotations

from tests.unit.scripted import Cluster, Gate, Origin, page, shown, start
from wsgi_isr import remote
from wsgi_isr.stamps import Mode


def test_a_page_whose_render_began_before_a_soft_invalidation_is_not_shown_as_new_to_who_came_after_it() -> None:
    gate = Gate(page("v2"))
    cluster = Cluster(Origin(page("v1"), gate))
    server, renderer = cluster.process(), cluster.process()
    server.get()
    server.fill._stamps.invalidate(["all"], Mode.EXPIRE)
    earlier = start(renderer.get)  # another visitor's
    gate.reached()
    server.fill._stamps.invalidate(["all"], Mode.STALE)

    def elsewhere(job: bytes, _first: bool, _patience: float) -> bool:
        # The renderer joins the render that is under way there, and says so.
        gate.open()
        assert shown(earlier.result()) == ("EXPIRED", "v2")
        server.fill.worked(job, remote.FOUND)
        return True

    server.fill.elsewhere = elsewhere
    assert shown(server.get()) == ("STALE", "v2")
