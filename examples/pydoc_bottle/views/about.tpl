% rebase('base', title="About")
<div class="intro prose">
  <h1>About these pages</h1>
  <p><a href="/module/pydoc">pydoc</a> writes these pages from the docstrings of each module. This site turns them into
    modern HTML, with links to its other pages. A page takes up to half a second to render. So it is rendered once,
    cached, and rendered again only when its package is upgraded.</p>
  <h2>How this page was made</h2>
  <dl class="facts">
    <div><dt>At</dt><dd><code>{{rendered_at}}</code></dd></div>
    <div><dt>By process</dt><dd><code>{{rendered_by}}</code></dd></div>
    <div><dt>In</dt><dd><code>{{took()}} ms</code></dd></div>
    <div><dt>With Python</dt><dd><code>{{version}}</code></dd></div>
  </dl>
  <p>This page is stale after ten seconds. The next visitor still gets the old page, and later visitors get the new
    one.</p>
  <h2>What is not here</h2>
  <p>Private modules, tests, programs, and what must not be imported: a module that opens a browser, one that prints a
    poem, and a few that change the process around them. Modules for other platforms are left out as well. What a
    module knows of the machine that it runs on, its paths and its environment, is shown as “…”.</p>
</div>
