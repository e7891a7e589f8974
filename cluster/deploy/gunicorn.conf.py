"""gunicorn for one instance. Options that differ between instances come from the environment; all others are here.

``gunicorn --config gunicorn.conf.py --check-config myapp:app`` says whether it can start.
"""

from __future__ import annotations

import os

# Import all of its hooks: they start the renderer processes, and let a worker that exits finish its background
# renders. A hook of your own with the name of one of them has to call it.
from wsgi_isr.gunicorn import *  # noqa: F403

# Ignored where systemd hands over a socket.
bind = os.environ.get("BIND", "127.0.0.1:8000")
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
threads = int(os.environ.get("THREADS", "8"))
worker_class = "gthread"

# One copy of the code in memory; wsgi_isr opens nothing before the fork.
preload_app = True
# Above the option `render_timeout` (30 s): a worker that is killed in a render loses it, and its lock stays for 5 s.
timeout = 60
# Above the option `drain_timeout` (10 s). Renderers get the same time after the end of the workers: systemd,
# Kubernetes and compose wait for both before they kill.
graceful_timeout = 20
# Longer than nginx keeps idle connections, so that nginx never finds one closed.
keepalive = 75
# On a busy disk, late heartbeats would look like hung workers.
worker_tmp_dir = "/dev/shm"
# gunicorn 25 and later: several instances on a machine would share one socket.
control_socket_disable = True

# Proxies whose X-Forwarded-Proto is trusted: http:// and https:// pages are cached separately.
forwarded_allow_ips = os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1")
accesslog = "-"
access_log_format = '%(h)s "%(r)s" %(s)s %(b)s %(M)sms isr=%({x-isr}o)s age=%({age}o)s'
