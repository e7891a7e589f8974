% rebase('base', title=module.name, description=module.summary)
<nav class="path" aria-label="Breadcrumb">
  <a href="/">Library</a>
  % if above or module.is_package:
  <a href="/package/{{module.package}}">{{module.package}} <span class="kind">package</span></a>
  % end
  % for name, part in above[1:]:
  <a href="/module/{{name}}">{{part}}</a>
  % end
</nav>
<div class="intro">
  <h1><code>\\
% for name, part in above:
<a href="/module/{{name}}">{{part}}</a>.<wbr>\\
% end
{{last}}</code></h1>
  % if doc.lead:
  <p>{{!doc.lead}}</p>
  % end
</div>
<div class="columns-2">
  <nav class="contents" aria-label="On this page">
    <ul>
      % for section in doc.sections:
      <li>
        <a href="#{{section.anchor}}">{{section.title}}\\
% if section.entries:
 <span class="count">{{len(section.entries)}}</span>\\
% end
</a>
        % if section.entries:
        <ul>
          % for anchor, name in section.entries:
          <li><a href="#{{anchor}}">{{name}}</a></li>
          % end
        </ul>
        % end
      </li>
      % end
      <li><a class="out" href="https://docs.python.org/{{python}}/search.html?q={{module.name}}">In the reference</a></li>
    </ul>
  </nav>
  <div class="doc-body">
    % if doc.text:
    <div class="doc overview">{{!doc.text}}</div>
    % end
    % for section in doc.sections:
    <section aria-labelledby="{{section.anchor}}">
      <h2 id="{{section.anchor}}">{{section.title}}</h2>
      {{!section.html}}
    </section>
    % end
  </div>
</div>
