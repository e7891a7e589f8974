"""The site without its cache: ``python examples/site_django/manage.py test examples.site_django``."""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager
from datetime import timedelta
from html import escape
from unittest import mock

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import Client, TestCase, override_settings
from django.utils import timezone

from wsgi_isr import InvalidationError, Receipt, StoreUnavailable

from . import seed
from .menu import MenuItem, menu
from .models import Event, Reservation, Topic

# Do not use the store of a site that may be running beside.
os.environ["WSGI_ISR_STORE"] = "null://"

PUBLIC = ["/", "/topics/music/", "/events/story-hour/", "/about/", "/events/none/", "/topics/none/", "/none/"]
DRAFT = "/events/winter-lights-walk/"
RESERVE = "/events/story-hour/reserve/"
EDIT = "/events/story-hour/edit/"


def token_in(page: str) -> str:
    """Return the token of the first form."""
    return re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page)[0]


@override_settings(PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"])
class SiteTestCase(TestCase):
    """A test case with the first programme in the database."""

    @classmethod
    def setUpTestData(cls) -> None:
        seed.fill()

    def setUp(self) -> None:
        self.event = Event.objects.get(slug="story-hour")
        users = get_user_model().objects
        self.reader, self.librarian = users.get(username="reader"), users.get(username="librarian")

    def as_(self, user: object) -> Client:
        """Return a logged-in client."""
        client = Client()
        client.force_login(user)
        return client

    def refuse(self, client: Client, path: str, **form: object) -> None:
        """Check that the form is refused for its token."""
        with self.assertLogs("django.security.csrf", "WARNING"):
            answer = client.post(path, form)
        self.assertContains(answer, "This form is too old", status_code=403)

    def form(self, **changes: object) -> dict[str, object]:
        """Return the form of the staff as the browser sends it."""
        names = ("title", "summary", "text", "topic_id", "starts", "minutes", "place", "seats", "published")
        form = {name.removesuffix("_id"): getattr(self.event, name) for name in names}
        return {**form, "starts": f"{self.event.starts:%Y-%m-%dT%H:%M}", **changes}


class PublicPages(SiteTestCase):
    def test_an_anonymous_page_depends_on_cookies_but_sets_none(self) -> None:
        for path in PUBLIC:
            with self.subTest(path):
                answer = self.client.get(path)
                assert answer.status_code == (404 if "none" in path else 200)
                assert not answer.cookies
                assert answer["Vary"] == "Cookie"

    def test_the_lists_have_upcoming_events_in_order(self) -> None:
        Event.objects.filter(slug="repair-cafe").update(starts=timezone.now() - timedelta(minutes=1))
        page = self.client.get("/")
        assert [event.slug for event in page.context["events"]][:2] == ["story-hour", "silent-reading"]
        self.assertNotContains(page, "/events/repair-cafe/")
        self.assertNotContains(page, DRAFT)

    def test_an_event_that_is_over_takes_no_reservations(self) -> None:
        Event.objects.filter(pk=self.event.pk).update(starts=timezone.now() - timedelta(minutes=1))
        page = self.client.get("/events/story-hour/")
        self.assertContains(page, "This event is over.")
        self.assertNotContains(page, RESERVE)
        self.assertContains(self.client.post(RESERVE, {"name": "Ida", "people": 1}), "Only 0 places are left.")

    def test_a_draft_is_for_the_staff_alone(self) -> None:
        assert self.client.get(DRAFT).status_code == 404
        assert self.client.get(DRAFT + "reserve/").status_code == 404
        assert self.as_(self.reader).get(DRAFT).status_code == 404
        self.assertContains(self.as_(self.librarian).get(DRAFT), "This is a draft.")
        self.assertContains(self.as_(self.librarian).get("/account/"), DRAFT)
        self.assertNotContains(self.as_(self.reader).get("/account/"), DRAFT)

    def test_text_of_visitors_is_escaped(self) -> None:
        nasty = "<script>&\"'"
        Event.objects.filter(pk=self.event.pk).update(title=nasty, summary=nasty, text=nasty, place=nasty)
        for path in ("/", "/events/story-hour/", "/topics/children/"):
            page = self.client.get(path)
            self.assertNotContains(page, "<script")
            self.assertContains(page, escape(nasty))

    def test_the_menu_counts_upcoming_events(self) -> None:
        assert menu()[0] == MenuItem("children", "Children", 3)
        self.event.delete()
        assert menu()[0].events == 2

    def test_static_files_alone_are_served(self) -> None:
        assert b"".join(self.client.get("/static/library.css").streaming_content).startswith(b"/*")
        assert self.client.get("/static/none.css").status_code == 404
        with self.assertLogs("django.security.SuspiciousFileOperation", "ERROR"):
            assert self.client.get("/static/../settings.py").status_code == 400

    def test_a_page_accepts_no_post(self) -> None:
        for path in PUBLIC[:4]:
            assert self.client.post(path).status_code == 405


class Reservations(SiteTestCase):
    def test_the_form_needs_its_token(self) -> None:
        visitor = Client(enforce_csrf_checks=True)
        form = {"name": "Ida", "people": 2}
        self.refuse(visitor, RESERVE, **form)
        token = token_in(visitor.get(RESERVE).text)
        self.refuse(visitor, RESERVE, **form)
        self.refuse(Client(enforce_csrf_checks=True), RESERVE, **form, csrfmiddlewaretoken=token)
        assert visitor.post(RESERVE, {**form, "csrfmiddlewaretoken": token}).status_code == 302
        assert Reservation.objects.count() == 1

    def test_a_visitor_with_the_link_may_look_and_cancel(self) -> None:
        made = self.client.post(RESERVE, {"name": "Ida", "people": 2})
        reservation = Reservation.objects.get()
        self.assertRedirects(made, f"/reservations/{reservation.code}/")
        self.assertContains(self.client.get("/events/story-hour/"), "18 of 20 left")
        self.assertContains(self.client.get(made["Location"]), "Ida")
        self.assertRedirects(self.client.post(made["Location"]), "/events/story-hour/")
        assert self.client.get(made["Location"]).status_code == 404
        self.assertContains(self.client.get("/events/story-hour/"), "20 of 20 left")

    def test_an_incomplete_form_is_shown_again(self) -> None:
        for form in ({}, {"name": "Ida"}, {"name": " ", "people": 1}, {"name": "Ida", "people": 7}, {"people": "x"}):
            with self.subTest(form):
                self.assertContains(self.client.post(RESERVE, form), 'class="errorlist"')
        assert not Reservation.objects.exists()

    def test_there_are_no_more_places_than_seats(self) -> None:
        Event.objects.filter(pk=self.event.pk).update(seats=3)
        assert self.client.post(RESERVE, {"name": "Ida", "people": 2}).status_code == 302
        self.assertContains(self.client.post(RESERVE, {"name": "Bo", "people": 2}), "Only 1 place is left.")
        assert self.client.post(RESERVE, {"name": "Bo", "people": 1}).status_code == 302
        page = self.client.get("/events/story-hour/")
        self.assertContains(page, "All 3 are taken.")
        self.assertNotContains(page, RESERVE)

    def test_an_account_has_its_own_reservations_only(self) -> None:
        reader = self.as_(self.reader)
        self.assertContains(reader.get(RESERVE), "Sam Whitlock")
        reader.post(RESERVE, {"name": "Sam Whitlock", "people": 1})
        self.client.post("/events/repair-cafe/reserve/", {"name": "Ida", "people": 1})
        page = reader.get("/account/")
        self.assertContains(page, "Story hour")
        self.assertNotContains(page, "Repair café")
        self.assertContains(self.as_(self.librarian).get("/account/"), "You have no reservations.")


class Accounts(SiteTestCase):
    def test_a_page_of_an_account_asks_to_log_in(self) -> None:
        for path in ("/account/", EDIT):
            self.assertRedirects(self.client.get(path), f"/login/?next={path}")

    def test_the_login_needs_its_token_and_the_right_password(self) -> None:
        visitor = Client(enforce_csrf_checks=True)
        right = {"username": "reader", "password": "reader"}
        self.refuse(visitor, "/login/", **right)
        token = {"csrfmiddlewaretoken": token_in(visitor.get("/login/").text)}
        self.assertContains(visitor.post("/login/", {**right, **token, "password": "x"}), "correct username")
        self.assertRedirects(visitor.post("/login/", {**right, **token}), "/account/")
        self.assertContains(visitor.get("/"), ">Sam<")

    def test_the_login_leads_nowhere_else(self) -> None:
        for target in ("//evil.example", "https://evil.example", "/\\evil.example"):
            form = {"username": "reader", "password": "reader", "next": target}
            assert Client().post("/login/", form)["Location"] == "/account/"

    def test_logging_out_takes_a_form_with_its_token(self) -> None:
        reader = Client(enforce_csrf_checks=True)
        reader.force_login(self.reader)
        assert reader.get("/logout/").status_code == 405
        self.refuse(reader, "/logout/")
        token = token_in(reader.get("/").text)
        self.assertRedirects(reader.post("/logout/", {"csrfmiddlewaretoken": token}), "/")
        self.assertContains(reader.get("/"), "Log in")

    def test_pages_for_one_visitor_are_marked_private(self) -> None:
        for path in ("/account/", EDIT, RESERVE, "/login/"):
            for client in (self.client, self.as_(self.librarian)):
                assert "private" in client.get(path)["Cache-Control"]

    def test_passwords_are_kept_as_hashes(self) -> None:
        assert "librarian" not in self.librarian.password


class Editing(SiteTestCase):
    def test_only_the_staff_may_edit(self) -> None:
        assert self.as_(self.reader).get(EDIT).status_code == 403
        assert self.as_(self.reader).post(EDIT, self.form(title="Mine")).status_code == 403
        self.assertRedirects(self.client.post(EDIT, self.form(title="Mine")), f"/login/?next={EDIT}")
        assert Event.objects.get(pk=self.event.pk).title == self.event.title

    def test_the_form_comes_with_what_there_is_and_saves_it(self) -> None:
        librarian = self.as_(self.librarian)
        self.assertContains(librarian.get(EDIT), f'value="{self.event.starts:%Y-%m-%dT%H:%M}"')
        made = librarian.post(EDIT, self.form(title="Story hour: foxes", starts="2031-05-06T11:15"))
        self.assertRedirects(made, "/events/story-hour/")
        self.assertContains(self.client.get("/"), "Tuesday 6 May, 11:15")

    def test_no_visitor_loses_a_reserved_place(self) -> None:
        self.client.post(RESERVE, {"name": "Ida", "people": 3})
        self.assertContains(self.as_(self.librarian).post(EDIT, self.form(seats=2)), "3 places are reserved already.")


class Invalidation(SiteTestCase):
    """The invalidations of each change."""

    OWN = frozenset({"event:story-hour", "topic:children", "events"})

    def dropped(self) -> AbstractContextManager[mock.Mock]:
        """Record the invalidations in the block."""
        return mock.patch("examples.site_django.caching.invalidate")

    def check(self, expected: set[str] | frozenset[str], call: mock.Mock) -> None:
        """Check that exactly these tags were invalidated, once."""
        assert [set(call.kwargs["tags"]) for call in call.call_args_list] == ([set(expected)] if expected else [])

    def save(self, event: Event, **changes: object) -> mock.Mock:
        """Change, save and commit an event; return the recorded invalidations."""
        with self.dropped() as call, self.captureOnCommitCallbacks(execute=True):
            for name, value in changes.items():
                setattr(event, name, value)
            event.save()
        return call

    def test_nothing_is_invalidated_before_the_commit(self) -> None:
        with self.dropped() as call:
            with self.captureOnCommitCallbacks() as callbacks:
                self.event.save()
            assert not call.called
            callbacks[0]()
            assert call.called

    def test_a_changed_text_invalidates_the_event_and_its_lists(self) -> None:
        self.check(self.OWN, self.save(self.event, text="New."))

    def test_a_changed_count_invalidates_the_menu(self) -> None:
        self.check({*self.OWN, "topics"}, self.save(self.event, starts=timezone.now()))
        self.check(self.OWN, self.save(self.event, text="Again, by the same object."))

    def test_a_change_of_topic_invalidates_both_topics(self) -> None:
        music = Topic.objects.get(slug="music")
        self.check({*self.OWN, "topic:music", "topics"}, self.save(self.event, topic=music))

    def test_a_draft_invalidates_nothing_before_it_is_published(self) -> None:
        draft = Event.objects.get(slug="winter-lights-walk")
        self.check(set(), self.save(draft, text="New."))
        expected = {"event:winter-lights-walk", "topic:history", "events", "topics"}
        self.check(expected, self.save(draft, published=True))
        self.check(expected, self.save(draft, published=False))

    def test_a_new_and_a_deleted_event_invalidate_the_menu(self) -> None:
        self.event.pk = None
        self.event.slug = "new"
        expected = {"event:new", "topic:children", "events", "topics"}
        self.check(expected, self.save(self.event))
        with self.dropped() as call, self.captureOnCommitCallbacks(execute=True):
            self.event.delete()
        self.check(expected, call)

    def test_a_reservation_invalidates_the_event_alone(self) -> None:
        with self.dropped() as call, self.captureOnCommitCallbacks(execute=True):
            self.client.post(RESERVE, {"name": "Ida", "people": 1})
        self.check({"event:story-hour"}, call)
        with self.dropped() as call, self.captureOnCommitCallbacks(execute=True):
            Reservation.objects.get().delete()
        self.check({"event:story-hour"}, call)

    def test_a_topic_invalidates_all_pages_that_show_its_name(self) -> None:
        with self.dropped() as call, self.captureOnCommitCallbacks(execute=True):
            Topic.objects.get(slug="music").save()
        self.check({"topic:music", "topics", "events"}, call)

    def test_a_change_without_a_cache_is_no_error(self) -> None:
        with self.assertNoLogs("examples.site_django.caching"), self.captureOnCommitCallbacks(execute=True):
            self.event.title = "Saved"
            self.event.save()  # the store of these tests is null://
        assert Event.objects.get(pk=self.event.pk).title == "Saved"

    def test_a_change_is_saved_even_if_the_invalidation_fails(self) -> None:
        with self.dropped() as call, self.assertLogs("examples.site_django.caching", "WARNING"):
            call.side_effect = InvalidationError((), {"tag:events": StoreUnavailable("node", "away")})
            with self.captureOnCommitCallbacks(execute=True):
                self.event.title = "Saved"
                self.event.save()
        assert Event.objects.get(pk=self.event.pk).title == "Saved"

    def test_a_change_in_the_admin_is_invalidated(self) -> None:
        form = self.form(topic=self.event.topic_id, starts_0="2031-05-06", starts_1="11:15:00", text="New.")
        page = f"/admin/library/event/{self.event.pk}/change/"
        with self.dropped() as call, self.captureOnCommitCallbacks(execute=True):
            answer = self.as_(self.librarian).post(page, {**form, "slug": self.event.slug})
        self.assertRedirects(answer, "/admin/library/event/", fetch_redirect_response=False)
        self.check({*self.OWN, "topics"}, call)


class Commands(SiteTestCase):
    def test_publishing_is_all_or_nothing(self) -> None:
        with self.assertRaisesMessage(CommandError, "There is no draft none, story-hour; nothing was published."):
            call_command("publish", "winter-lights-walk", "story-hour", "none")
        assert not Event.objects.get(slug="winter-lights-walk").published

    def test_publishing_reports_a_failed_invalidation(self) -> None:
        failures = (("tag:events", StoreUnavailable("node", "away")),)
        with mock.patch("examples.site_django.management.commands.publish.invalidate") as call:
            call.return_value = Receipt(("tag:events",), "expire", 0.0, failures=failures, journal="journal")
            with self.assertRaisesMessage(CommandError, "Published winter-lights-walk, but: not delivered: tag:events"):
                call_command("publish", "winter-lights-walk")
        assert Event.objects.get(slug="winter-lights-walk").published

    def test_the_migrations_are_those_of_the_models(self) -> None:
        call_command("makemigrations", check=True, dry_run=True, verbosity=0)
