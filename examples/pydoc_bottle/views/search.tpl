% rebase('base', title=f"Search: {query}" if query else "Search", form=False)
<div class="intro">
  <h1>Search</h1>
  <form class="search large" role="search" action="/search">
    <label class="unseen" for="search-q">Search modules</label>
    <input id="search-q" type="search" name="q" maxlength="{{longest}}" value="{{query}}" placeholder="json, socket, random numbers …" autocapitalize="none" autocomplete="off" spellcheck="false">
    <button>Search</button>
  </form>
</div>
% if query:
<h2>{{found.total or "No"}} {{"module" if found.total == 1 else "modules"}} for “{{query}}”</h2>
% if found.total > most:
<p class="hint">The first {{most}} are shown. Another word makes it fewer.</p>
% end
% if found.total:
% include('_modules', modules=found.hits)
% else:
<p class="hint">Every word must be in the name of a module or in its summary.</p>
% end
% end
