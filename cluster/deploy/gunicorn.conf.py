"""Configure gunicorn for one instance. Options that differ between instances come from the environment.

``gunicorn --config gunicorn.conf.py --check-config myapp:app`` tells whether gunicorn can start.
"""

from __future__ import annotations

import os

# These hooks start the renderer processes, and let a stopping worker end its background renders. A hook of your own
# with one of their names must call the hook that it replaces.
from wsgi_isr.gunicorn import *  # noqa: F403

# gunicorn ignores this where systemd passes a socket.
bind = os.environ.get("BIND", "127.0.0.1:8000")
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
threads = int(os.environ.get("THREADS", "8"))
worker_class = "wsgi_isr.gunicorn.Worker"  # gthread, with hits answered in the event loop

# All workers share one copy of the code in memory. wsgi_isr opens nothing before the fork.
preload_app = True
# Above `render_timeout` (30 s): a worker that is killed in a render loses the render, and its lease stays for 5 s.
timeout = 60
# Above `drain_timeout` (10 s). Renderers get the same time after the workers have ended. systemd, Kubernetes and
# compose wait for both before they kill.
graceful_timeout = 20
# Above nginx's keepalive_timeout, so that nginx finds no connection closed.
keepalive = 75
# Heartbeats on a busy disk come late, and a late heartbeat looks like a hung worker.
worker_tmp_dir = "/dev/shm"
# From gunicorn 25 on, several instances on a machine would share one control socket.
control_socket_disable = True

# gunicorn trusts X-Forwarded-Proto of these proxies. Pages of http:// and https:// are cached separately.
forwarded_allow_ips = os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1")
accesslog = "-"
access_log_format = '%(h)s "%(r)s" %(s)s %(b)s %(M)sms isr=%({x-isr}o)s age=%({age}o)s'
