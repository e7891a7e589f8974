# Varnish in front of wsgi_isr, with cdn="varnish". Include it from a VCL that has the backends (default.vcl).
# Needs Varnish 7 and varnish-modules (xkey). Start varnishd with a listener of its own for purges:
#
#     varnishd -a http=:80 -a purge=10.0.0.5:6082 -f /etc/varnish/default.vcl
#
# and tell the app: WSGI_ISR_CDN=varnish WSGI_ISR_CDN_PURGE_URL=http://10.0.0.5:6082/
# Only the app's network may reach the listener "purge". An ACL by client.ip alone does not do: behind a proxy for TLS,
# each client has the address of the proxy.

import std;
import xkey;

sub vcl_recv {
    if (local.socket == "purge") {
        if (req.method != "PURGE") {
            return (synth(405));
        }
        # In the environment of varnishd, the same token as in that of the app. Without one, the network protects.
        if (std.getenv("WSGI_ISR_CDN_TOKEN") ~ "." &&
            req.http.Authorization != "Bearer " + std.getenv("WSGI_ISR_CDN_TOKEN")) {
            return (synth(403));
        }
        if (req.http.xkey-softpurge) {
            set req.http.X-Purged = xkey.softpurge(req.http.xkey-softpurge);
        } else if (req.http.xkey-purge) {
            set req.http.X-Purged = xkey.purge(req.http.xkey-purge);
        } else {
            return (synth(400));
        }
        return (synth(200, "purged"));
    }
    if (req.method == "PURGE") {
        return (synth(405));
    }
    # A page is rendered for the host and the scheme of a request. A client must not forge either.
    unset req.http.X-Forwarded-Host;
    unset req.http.Forwarded;
    if (req.http.X-Forwarded-Proto != "https") {
        set req.http.X-Forwarded-Proto = "http";
    }
    # Requests with Cookie or Authorization go on to the app: so the built-in VCL says, after this one.
    # Cookies of analytics identify no visitor. The option ignore_cookies has more of them.
    if (req.http.Cookie) {
        set req.http.Cookie = regsuball(req.http.Cookie, "(^|;\s*)(_ga[^=]*|_gid|_fbp|__utm[^=]*)=[^;]*", "");
        set req.http.Cookie = regsub(req.http.Cookie, "^[;\s]+", "");
        if (req.http.Cookie == "") {
            unset req.http.Cookie;
        }
    }
}

sub vcl_hash {
    hash_data(req.http.X-Forwarded-Proto);
}

sub vcl_backend_response {
    # RFC 9213, 2.2: the targeted field takes the place of Cache-Control. Answers of other apps have none.
    if (beresp.http.CDN-Cache-Control) {
        if (beresp.http.CDN-Cache-Control ~ "max-age=[1-9]" && !beresp.http.Set-Cookie) {
            # Age counts from the render: what is left of the lifetime is that much shorter.
            set beresp.ttl =
                std.duration(regsub(beresp.http.CDN-Cache-Control, "^.*max-age=([0-9]+).*$", "\1s"), 0s) - beresp.age;
            set beresp.grace = 0s;
            if (beresp.http.CDN-Cache-Control ~ "stale-while-revalidate=[1-9]") {
                set beresp.grace = std.duration(
                    regsub(beresp.http.CDN-Cache-Control, "^.*stale-while-revalidate=([0-9]+).*$", "\1s"), 0s);
            }
            set beresp.keep = 1h;
            # The built-in VCL would not keep it: Cache-Control speaks to browsers.
            return (deliver);
        }
        # For a short time, requests for this URL do not wait for each other. A page with a lifetime ends it.
        set beresp.ttl = 10s;
        set beresp.grace = 0s;
        set beresp.uncacheable = true;
        return (deliver);
    }
}

sub vcl_deliver {
    # Names of tags and the lifetime at the edge are no business of clients.
    unset resp.http.xkey;
    unset resp.http.CDN-Cache-Control;
}

sub vcl_synth {
    if (local.socket == "purge") {
        set resp.http.Content-Type = "text/plain";
        if (resp.status == 200) {
            synthetic("purged " + req.http.X-Purged);
        } else {
            synthetic(resp.reason);
        }
        return (deliver);
    }
}
