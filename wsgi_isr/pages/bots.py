"""Recognition of crawlers and link previews by their published user agents.

They do not come back for the page, so they always get the whole page instead of a shell.
"""

from __future__ import annotations

import functools
import re

# Words that most bots share ("+http" begins the URL that a bot gives for itself; Cubot makes telephones), then bots
# without such a word.
_CRAWLERS = (
    r"(?<!cu)bot\b|(?<!cu)bot[/;_-]|crawl|spider|slurp|\+https?://"
    r"|facebookexternalhit|facebookcatalog|meta-externalagent|meta-externalfetcher|whatsapp|skypeuripreview"
    r"|mediapartners-google|adsbot-google|google-inspectiontool|googleother|google-read-aloud|apis-google|feedfetcher"
    r"|bingpreview|duckassist|yandex|baidu|sogou|yeti/|naver|daum|qwantify|petalsearch"
    r"|embedly|quora link preview|pinterest|vkshare|tumblr|flipboard|outbrain|bitlybot|redditbot|nuzzel|w3c_validator"
    r"|ia_archiver|archive\.org|chrome-lighthouse|google page speed|prerender|rendertron"
)


def is_crawler(user_agent: str) -> bool:
    """Return whether this ``User-Agent`` (RFC 9110, 10.1.5) is that of a crawler.

    An empty one counts as a crawler: browsers send one.
    """
    return not user_agent or _pattern().search(user_agent) is not None


@functools.cache
def _pattern() -> re.Pattern[str]:
    return re.compile(_CRAWLERS, re.IGNORECASE)  # half a millisecond, spent only by apps with a shell
