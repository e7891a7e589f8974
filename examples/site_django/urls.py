"""The map of the site."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.contrib.staticfiles.views import serve
from django.urls import path

from . import views

urlpatterns = [
    path("", views.Programme.as_view(), name="programme"),
    path("topics/<slug:slug>/", views.TopicPage.as_view(), name="topic"),
    path("events/<slug:slug>/", views.EventPage.as_view(), name="event"),
    path("events/<slug:slug>/reserve/", views.Reserve.as_view(), name="reserve"),
    path("events/<slug:slug>/edit/", views.EditEvent.as_view(), name="edit"),
    path("reservations/<str:code>/", views.ReservationPage.as_view(), name="reservation"),
    path("about/", views.About.as_view(), name="about"),
    path("admin/", admin.site.urls),
    path("account/", views.Account.as_view(), name="account"),
    path("login/", LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    # On real sites, nginx or WhiteNoise serves these. Here there is a cache in front.
    path("static/<path:path>", serve, {"insecure": True}, name="static"),
]
