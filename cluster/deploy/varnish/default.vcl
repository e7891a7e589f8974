vcl 4.1;

import directors;

# The instances of the app, or a load balancer in front of them.
backend one { .host = "10.0.0.11"; .port = "8000"; }
backend two { .host = "10.0.0.12"; .port = "8000"; }
backend three { .host = "10.0.0.13"; .port = "8000"; }

sub vcl_init {
    new instances = directors.round_robin();
    instances.add_backend(one);
    instances.add_backend(two);
    instances.add_backend(three);
}

sub vcl_recv {
    set req.backend_hint = instances.backend();
}

include "wsgi_isr.vcl";
