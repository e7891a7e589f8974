<ul class="modules">
  % for module in modules:
  <li>
    <a href="/module/{{module.name}}">{{module.name}}</a>
    % if module.is_package:
    <span class="kind">package</span>
    % end
    % if module.summary:
    <p>{{module.summary}}</p>
    % end
  </li>
  % end
</ul>
