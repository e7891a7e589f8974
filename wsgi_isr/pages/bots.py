"""Who reads pages for others: crawlers, and services that make previews of links, by their published user agents.

They do not come back a moment later, so that they always get the whole page.
"""

from __future__ import annotations

import functools
import re

# Words that most of them have in common ("+http" is how a bot names the page about itself; Cubot makes telephones),
# and those without any.
_CRAWLERS = (
    r"(?<!cu)bot\b|(?<!cu)bot[/;_-]|crawl|spider|slurp|\+https?://"
    r"|facebookexternalhit|facebookcatalog|meta-externalagent|meta-externalfetcher|whatsapp|skypeuripreview"
    r"|mediapartners-google|adsbot-google|google-inspectiontool|googleother|google-read-aloud|apis-google|feedfetcher"
    r"|bingpreview|duckassist|yandex|baidu|sogou|yeti/|naver|daum|qwantify|petalsearch"
    r"|embedly|quora link preview|pinterest|vkshare|tumblr|flipboard|outbrain|bitlybot|redditbot|nuzzel|w3c_validator"
    r"|ia_archiver|archive\.org|chrome-lighthouse|google page speed|prerender|rendertron"
)


def is_crawler(user_agent: str) -> bool:
    """Whether this ``User-Agent`` (RFC 9110, 10.1.5) is one of those; whoever sends none has no browser."""
    return not user_agent or _pattern().search(user_agent) is not None


@functools.cache
def _pattern() -> re.Pattern[str]:
    return re.compile(_CRAWLERS, re.IGNORECASE)  # half a millisecond, for those who have a shell
