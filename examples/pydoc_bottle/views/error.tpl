% rebase('base', title=title)
<div class="intro">
  <h1>{{title}}</h1>
  % if message:
  <p>{{message}}</p>
  % end
</div>
% if similar:
<h2>Did you mean</h2>
% include('_modules', modules=similar)
% end
<p><a class="button" href="/">To the library</a></p>
