% rebase('base', title=f"The Python {python} library", form=False)
<div class="intro">
  <h1>The Python {{python}} library</h1>
  <p>{{total}} modules of the standard library, each rendered by pydoc at its first request, and cached from
    then on.</p>
  <form class="search large" role="search" action="/search">
    <label class="unseen" for="search-q">Search modules</label>
    <input id="search-q" type="search" name="q" maxlength="{{longest}}" placeholder="json, socket, random numbers …" autocapitalize="none" autocomplete="off" spellcheck="false">
    <button>Search</button>
  </form>
</div>

<h2 id="all-packages">Packages <span class="count">{{len(packages)}}</span></h2>
<ul class="cards">
  % for package, modules in packages:
  <li>
    <a href="/package/{{package.name}}">{{package.name}}</a> <span class="count">{{len(modules)}}<span class="unseen"> modules</span></span>
    <p>{{package.summary or ", ".join(module.name.partition(".")[2] for module in modules[1:5])}}</p>
  </li>
  % end
</ul>

<h2 id="all-modules">Modules on their own <span class="count">{{alone}}</span></h2>
<nav class="letters" aria-label="Letters">
  % for letter, modules in letters:
  <a href="#letter-{{letter}}">{{letter}}</a>
  % end
</nav>
% for letter, modules in letters:
<section class="letter" aria-labelledby="letter-{{letter}}">
  <h3 id="letter-{{letter}}">{{letter}}</h3>
  % include('_modules', modules=modules)
</section>
% end
