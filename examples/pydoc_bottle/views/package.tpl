% rebase('base', title=package.name, description=package.summary)
<nav class="path" aria-label="Breadcrumb"><a href="/">Library</a></nav>
<div class="intro">
  <h1><span class="kind">package</span> <code>{{package.name}}</code></h1>
  % if package.summary:
  <p>{{package.summary}}.</p>
  % end
  <p><a class="button" href="/module/{{package.name}}">Documentation of {{package.name}}</a></p>
</div>
<h2>Modules <span class="count">{{len(modules)}}</span></h2>
% include('_modules', modules=modules)
