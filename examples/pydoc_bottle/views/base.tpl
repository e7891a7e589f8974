<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <title>{{title}} · Pydoc, kept</title>
  <meta name="description" content="{{get('description') or 'The standard library of Python, rendered by pydoc and kept.'}}">
  <link rel="icon" type="image/svg+xml" href="/static/icon.svg">
  <link rel="stylesheet" href="/static/site.css">
</head>
<body>
  <a class="skip" href="#page-content">Skip to the content</a>
  <header class="site">
    <div class="wide">
      <a class="brand" href="/"><img src="/static/icon.svg" alt="" width="26" height="26">Pydoc, kept</a>
      <nav aria-label="Main">
        <a href="/"{{!' aria-current="page"' if current == "/" else ""}}>Library</a>
        <a href="/about"{{!' aria-current="page"' if current == "/about" else ""}}>About</a>
      </nav>
      % if get('form', True):
      <form class="search" role="search" action="/search">
        <label class="unseen" for="search-q">Search modules</label>
        <input id="search-q" type="search" name="q" maxlength="{{longest}}" value="{{query}}" placeholder="Search modules" autocapitalize="none" autocomplete="off" spellcheck="false">
      </form>
      % end
    </div>
  </header>
  <main id="page-content" class="wide">
{{!base}}
  </main>
  <footer class="site">
    <div class="wide">
      <p>
        Rendered <time id="rendered-at" datetime="{{rendered_at}}">{{rendered_at[:10]}} {{rendered_at[11:-1]}} UTC</time>
        by process <span id="rendered-by">{{rendered_by}}</span> in {{took()}} ms.
      </p>
      <p>Load the page again: if this line does not change, the page was kept.</p>
    </div>
  </footer>
</body>
</html>
