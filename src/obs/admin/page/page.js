// Shows what /api/v1/events tells. Text goes into the page as text only: names come from the cluster.
'use strict';
(() => {
  const byId = (id) => document.getElementById(id);
  const el = (tag, cls, text) => {
    const node = document.createElement(tag);
    if (cls) node.className = cls;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  const mark = (node, state) => { if (node.dataset.state !== state) node.dataset.state = state; };
  const word = (text, state) => { const node = el('span', 'word', text); node.dataset.state = state; return node; };

  // === Numbers for people ===

  const count = (n) => n.toLocaleString('en').replaceAll(',', '\u202f');
  const bytes = (n) => {
    const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
    let i = 0;
    while (n >= 1023.5 && i + 1 < units.length) { n /= 1024; i += 1; }
    return `${i === 0 || n >= 99.95 ? Math.round(n) : n.toFixed(1)} ${units[i]}`;
  };
  const rate = (n) => (n === 0 ? '0' : n < 9.95 ? n.toFixed(1) : count(Math.round(n)));
  const age = (s) => {
    s = Math.max(0, Math.floor(s));
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min`;
    if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
    return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
  };
  const several = (n, one, many) => `${count(n)} ${n === 1 ? one : many}`;

  // === Rates: over the last few events, so that they neither jump nor lag ===

  const WINDOW = 4;
  const KEPT = 60;
  const past = [];
  const key = (s) => `${s.namespace}/${s.name}:${s.port.name}/${s.port.protocol}`;
  const sums = (view) => {
    const total = { at: view.atMillis, services: new Map(), open: view.status.proxy.activeConnections };
    const { proxy, dns } = view.status;
    total.accepted = proxy.acceptedTotal;
    total.refused = proxy.refusedTotal;
    total.names = dns ? dns.clusterQueriesTotal + dns.foreignQueriesTotal : 0;
    for (const s of view.status.services) {
      total.services.set(key(s), { made: s.connectionsTotal, in: s.bytesInTotal, out: s.bytesOutTotal });
    }
    return total;
  };
  const remember = (view) => {
    const now = sums(view);
    // A number that went down belongs to another life of the agent.
    const last = past.at(-1);
    if (last && (now.at <= last.at || now.accepted < last.accepted)) past.length = 0;
    past.push(now);
    if (past.length > KEPT) past.shift();
  };
  const over = (from, to, get) => {
    const seconds = (to.at - from.at) / 1000;
    const [a, b] = [get(from), get(to)];
    return seconds > 0 && a !== undefined && b >= a ? (b - a) / seconds : 0;
  };
  const now = (get) => {
    const recent = past.slice(-WINDOW);
    return recent.length < 2 ? 0 : over(recent[0], recent.at(-1), get);
  };
  const moved = (from, to, which) => {
    const seconds = (to.at - from.at) / 1000;
    let sum = 0;
    for (const [name, s] of to.services) {
      const before = from.services.get(name);
      if (before && s[which] > before[which]) sum += s[which] - before[which];
    }
    return seconds > 0 ? sum / seconds : 0;
  };
  const traffic = (which) => {
    const recent = past.slice(-WINDOW);
    return recent.length < 2 ? 0 : moved(recent[0], recent.at(-1), which);
  };

  const SVG = 'http://www.w3.org/2000/svg';
  const spark = (id, values) => {
    const holder = byId(id);
    if (!holder.firstChild) {
      const svg = document.createElementNS(SVG, 'svg');
      svg.setAttribute('viewBox', '0 0 100 30');
      svg.setAttribute('preserveAspectRatio', 'none');
      for (const cls of ['area', 'edge']) {
        const path = document.createElementNS(SVG, 'path');
        path.setAttribute('class', cls);
        svg.append(path);
      }
      holder.append(svg);
    }
    const [area, edge] = holder.firstChild.children;
    if (values.length < 2) return;
    const most = Math.max(...values, 1e-9);
    const step = 100 / Math.max(values.length - 1, 14);
    const from = 100 - step * (values.length - 1);
    const points = values.map((v, i) => `${(from + i * step).toFixed(2)} ${(28 - 25 * (v / most)).toFixed(2)}`);
    edge.setAttribute('d', `M${points.join('L')}`);
    area.setAttribute('d', `M${from.toFixed(2)} 30L${points.join('L')}L100 30Z`);
  };

  // === Head and figures ===

  let said = '';
  const announce = (text) => { if (text !== said) { said = text; put(byId('announce'), text); } };

  const ready = (b) => b.state === 'ready' && b.eligible !== false;
  const health = (s) => {
    const good = s.backends.filter(ready).length;
    const all = s.backends.length;
    const out = s.backends.filter((b) => b.state === 'ejected').length;
    if (all === 0) return { state: 'dim', text: 'none', rank: 1, good };
    if (good === 0) return { state: 'bad', text: `0 of ${all} usable`, rank: 3, good };
    if (out > 0) return { state: 'warn', text: `${good} of ${all} usable, ${out} ejected`, rank: 2, good };
    return { state: 'good', text: `${good} of ${all} usable`, rank: 0, good };
  };
  const SOURCE = { synced: '', cached: 'warn', stale: 'warn', error: 'bad' };
  const figure = (id, text, more, state = '', moreState = '') => {
    put(byId(id), text);
    mark(byId(id), state);
    put(byId(`${id}-more`), more);
    mark(byId(`${id}-more`), moreState);
  };

  const head = ({ status }) => {
    const waiting = status.conditions.filter((c) => !c.ok).map((c) => c.name);
    put(byId('node'), status.node);
    put(byId('version'), `edgesplice ${status.version}`);
    document.title = `${status.ready ? '' : '(not ready) '}${status.node} – edgesplice`;
    put(byId('ready'), status.ready ? 'Ready' : `Not ready: ${waiting.join(', ')}`);
    mark(byId('ready'), status.ready ? 'good' : 'bad');
    announce(`${status.node} is ${status.ready ? 'ready' : 'not ready'}; the source is ${status.source.state}.`);
  };

  const figures = ({ status, omittedServices }) => {
    const { source, proxy, rules, dns, services } = status;
    figure('f-source', source.state, `${source.kind}, ${age(source.ageSeconds)} old`, SOURCE[source.state] ?? 'bad');
    const stranded = services.filter((s) => health(s).rank === 3).length;
    const idle = services.filter((s) => s.backends.length === 0).length;
    const about = stranded ? `${count(stranded)} without a usable backend` : idle ? `${count(idle)} without endpoints` : 'all have a backend';
    figure('f-ports', count(services.length + omittedServices), services.length ? about : 'none known', '', stranded ? 'bad' : '');
    figure('f-open', count(proxy.activeConnections), `${rate(now((s) => s.accepted))} new/s, ${several(proxy.udpFlows ?? 0, 'UDP flow', 'UDP flows')}`);
    figure('f-traffic', `${bytes(traffic('out'))}/s`, `to clients; ${bytes(traffic('in'))}/s from them`);
    figure('f-refused', `${rate(now((s) => s.refused))}/s`, `${count(proxy.refusedTotal)} since start`);
    if (dns) {
      const foreign = dns.foreignQueriesTotal;
      const kept = foreign ? `${Math.round((100 * dns.cachedAnswersTotal) / foreign)} % from memory` : 'cluster names only so far';
      figure('f-dns', `${rate(now((s) => s.names))}/s`, dns.upstreamFailuresTotal ? `${kept}, ${count(dns.upstreamFailuresTotal)} unanswered` : kept);
    } else {
      figure('f-dns', 'off', 'names are not answered here');
    }
    const repairs = rules.repairsTotal ? several(rules.repairsTotal, 'repair', 'repairs') : 'never disturbed';
    figure('f-rules', rules.installed ? 'in place' : 'not in place', rules.lastError || `${rules.backend || 'no packet filter'}, ${repairs}`,
      rules.installed ? '' : 'warn', rules.lastError ? 'bad' : '');
    const ranges = status.serviceCIDRs;
    figure('f-ranges', ranges[0] ?? 'nothing', ranges.slice(1).join(', ') || `listener port ${proxy.port}`);
    spark('spark-open', past.map((s) => s.open));
    const curve = [];
    for (let i = 1; i < past.length; i += 1) curve.push(moved(past[i - 1], past[i], 'out') + moved(past[i - 1], past[i], 'in'));
    spark('spark-traffic', curve);
  };

  // === Attention ===

  const LEVEL = { problem: ['Problem', 'bad', 0], warning: ['Warning', 'warn', 1], info: ['Info', 'calm', 2] };
  let notesNow = '';
  const attention = ({ status, findings, findingsAgeSeconds }) => {
    const notes = [];
    for (const c of status.conditions.filter((c) => !c.ok)) notes.push(['problem', `Not ready, ${c.name}: ${c.detail}`, '']);
    if (status.source.message) notes.push([status.source.state === 'error' ? 'problem' : 'warning', `Source: ${status.source.message}`, '']);
    for (const w of status.warnings) notes.push(['warning', w, '']);
    for (const f of findings ?? []) {
      if (!notes.some(([, what]) => what === f.what)) notes.push([f.severity, f.what, f.mend]);
    }
    notes.sort((a, b) => LEVEL[a[0]][2] - LEVEL[b[0]][2]);
    put(byId('checked'), findings === null ? 'Looking this machine over …' : `This machine was looked over ${age(findingsAgeSeconds)} ago, as edgesplice check does.`);
    const open = notes.filter(([level]) => level !== 'info').length;
    const badge = byId('attention-count');
    badge.hidden = open === 0;
    put(badge, String(open));
    mark(badge, notes.some(([level]) => level === 'problem') ? 'bad' : 'warn');
    const text = JSON.stringify(notes);
    if (text === notesNow) return;
    notesNow = text;
    const list = byId('notes');
    list.replaceChildren();
    if (notes.length === 0) {
      const none = el('li', 'none', 'Nothing needs attention.');
      none.dataset.state = 'good';
      list.append(none);
    }
    for (const [level, what, mend] of notes) {
      const item = el('li');
      item.append(word(LEVEL[level][0], LEVEL[level][1]), el('p', '', what));
      if (mend) {
        const line = el('p', 'mend', 'Mend: ');
        line.append(el('code', '', mend));
        item.append(line);
      }
      list.append(item);
    }
  };

  // === Services ===

  const rows = new Map();
  const expanded = new Set();
  let sort = { by: 'name', down: false };
  let view = null;

  const STATE = { ready: 'good', ejected: 'warn', draining: 'calm', unreachable: 'bad' };
  const backendTable = (backends, chosen) => {
    const table = el('table');
    const line = el('tr');
    const columns = [['Backend', ''], ['State', ''], ['Node', ''], ['Reach', 'deep'], ['Pod', 'deep'], ['Open', 'num'], ['Total', 'num deep'], ['Failed', 'num deep'], ['Why', '']];
    for (const [text, cls] of columns) { const th = el('th', cls, text); th.scope = 'col'; line.append(th); }
    const headRow = el('thead');
    headRow.append(line);
    const body = el('tbody');
    for (const b of backends) {
      const tr = el('tr');
      const name = el('th', 'mono', b.address);
      name.scope = 'row';
      const passed = chosen && b.eligible === false && b.state === 'ready';
      const state = el('td');
      state.append(word(passed ? 'passed over' : b.state, passed ? 'dim' : STATE[b.state] ?? 'dim'));
      const where = [b.node, b.zone && `(${b.zone})`].filter(Boolean).join(' ') || '–';
      tr.append(name, state, el('td', '', where), el('td', 'deep', b.reach), el('td', 'deep', b.pod ?? '–'),
        el('td', 'num', count(b.activeConnections)), el('td', 'num deep', count(b.connectionsTotal)),
        el('td', 'num deep', count(b.failuresTotal)), el('td', 'why', b.reason));
      body.append(tr);
    }
    table.append(headRow, body);
    return table;
  };

  const makeRow = (id) => {
    const tr = el('tr');
    const th = el('th');
    th.scope = 'row';
    const button = el('button', 'open');
    button.type = 'button';
    const label = el('span');
    const [name, ns, port] = [el('span', 'name'), el('span', 'ns'), el('span', 'port')];
    label.append(name, ' ', ns, ' ', port);
    button.append(label);
    th.append(button);
    const cells = { addr: el('td', 'mid mono'), mode: el('td', 'mid'), health: el('td'), open: el('td', 'num'), rate: el('td', 'num'), in: el('td', 'num far'), out: el('td', 'num far') };
    const chip = word('', 'dim');
    cells.health.append(chip);
    tr.append(th, ...Object.values(cells));
    const more = el('tr', 'more');
    const cell = el('td');
    cell.colSpan = 8;
    more.append(cell);
    more.id = `more-${rows.size}`;
    more.hidden = true;
    button.setAttribute('aria-controls', more.id);
    button.setAttribute('aria-expanded', 'false');
    const row = { tr, more, cell, button, name, ns, port, cells, chip, shown: '' };
    button.addEventListener('click', () => {
      if (!expanded.delete(id)) expanded.add(id);
      services();
    });
    return row;
  };

  const fill = (row, item) => {
    const { s } = item;
    put(row.name, s.name);
    put(row.ns, s.namespace);
    put(row.port, `${s.port.name ? `${s.port.name} ` : ''}${s.port.port}/${s.port.protocol}`);
    const [first, ...others] = s.frontends;
    put(row.cells.addr, first ? `${first}${others.length ? ` +${others.length}` : ''}` : '–');
    row.cells.addr.title = s.frontends.join('\n');
    put(row.cells.mode, `${s.mode}, ${s.policy}`);
    put(row.chip, item.health.text);
    mark(row.chip, item.health.state);
    put(row.cells.open, count(s.activeConnections));
    put(row.cells.rate, rate(item.rate));
    put(row.cells.in, `${bytes(item.in)}/s`);
    put(row.cells.out, `${bytes(item.out)}/s`);
    row.tr.classList.toggle('zero', s.activeConnections === 0 && item.rate === 0);
    const open = expanded.has(item.id);
    row.button.setAttribute('aria-expanded', String(open));
    row.more.hidden = !open;
    if (!open) return;
    const shown = JSON.stringify([s.backends, s.frontends, s.policy]);
    if (shown === row.shown) return;
    row.shown = shown;
    const facts = `${s.frontends.join('  ')} · ${s.mode}, ${s.policy} · ${count(s.connectionsTotal)} connections, ${bytes(s.bytesInTotal)} in, ${bytes(s.bytesOutTotal)} out since start`;
    const inner = el('div', 'inner');
    inner.append(el('p', 'facts', facts), s.backends.length ? backendTable(s.backends, true) : el('p', 'facts', 'No endpoints: clients are refused.'));
    row.cell.replaceChildren(inner);
  };

  const items = () => view.status.services.map((s) => {
    const id = key(s);
    const of = (which) => now((sample) => sample.services.get(id)?.[which]);
    return { id, s, health: health(s), rate: of('made'), in: of('in'), out: of('out') };
  });
  const SORT = {
    name: (a, b) => a.s.name.localeCompare(b.s.name) || a.id.localeCompare(b.id),
    health: (a, b) => a.health.rank - b.health.rank || a.health.good - b.health.good,
    open: (a, b) => a.s.activeConnections - b.s.activeConnections,
    rate: (a, b) => a.rate - b.rate,
    in: (a, b) => a.in - b.in,
    out: (a, b) => a.out - b.out,
  };
  const matches = (s, words) => {
    const text = [s.namespace, s.name, s.port.name, s.port.port, s.mode, ...s.frontends, ...s.backends.flatMap((b) => [b.address, b.node, b.pod, b.zone])].join(' ').toLowerCase();
    return words.every((w) => text.includes(w));
  };

  function services() {
    if (!view) return;
    const words = byId('filter').value.toLowerCase().split(/\s+/).filter(Boolean);
    const only = byId('trouble').checked;
    const all = items();
    const shown = all.filter((i) => matches(i.s, words) && (!only || i.health.rank > 0));
    const compare = SORT[sort.by];
    shown.sort((a, b) => (sort.down ? -compare(a, b) : compare(a, b)) || SORT.name(a, b));
    const body = byId('rows');
    const wanted = [];
    for (const item of shown) {
      let row = rows.get(item.id);
      if (!row) { row = makeRow(item.id); rows.set(item.id, row); }
      fill(row, item);
      wanted.push(row.tr, row.more);
    }
    const known = new Set(all.map((i) => i.id));
    for (const id of rows.keys()) if (!known.has(id)) rows.delete(id);
    if (wanted.length === 0) {
      const cell = el('td', 'empty', all.length ? 'No service fits the filter.' : 'This node knows no services.');
      cell.colSpan = 8;
      const line = el('tr');
      line.append(cell);
      wanted.push(line);
    }
    // Only where the order has changed, so that focus stays where it is.
    if (wanted.length !== body.children.length || wanted.some((node, i) => body.children[i] !== node)) body.replaceChildren(...wanted);
    const badge = byId('services-count');
    badge.hidden = false;
    put(badge, count(all.length + view.omittedServices));
    const omitted = view.omittedServices ? ` ${count(view.omittedServices)} more are not shown here; edgesplice status lists all.` : '';
    put(byId('shown'), (shown.length === all.length ? '' : `${shown.length} of ${all.length} shown.`) + omitted);
  }

  // === Map of services to nodes ===

  const MOST_NODES = 10;
  let mapNow = '';
  const map = ({ status }) => {
    const nodes = new Map();
    const lines = [];
    for (const s of status.services) {
      if (!s.backends.length) continue;
      const by = new Map();
      for (const b of s.backends) {
        const node = b.node ?? (b.reach === 'external' ? 'outside' : 'unknown');
        const cell = by.get(node) ?? { good: 0, all: 0, out: 0 };
        cell.all += 1;
        if (ready(b)) cell.good += 1;
        if (b.state === 'ejected') cell.out += 1;
        by.set(node, cell);
        nodes.set(node, { zone: b.zone ?? nodes.get(node)?.zone ?? '', weight: (nodes.get(node)?.weight ?? 0) + 1 });
      }
      lines.push({ name: s.name, ns: s.namespace, port: `${s.port.port}/${s.port.protocol}`, by });
    }
    lines.sort((a, b) => a.name.localeCompare(b.name) || a.ns.localeCompare(b.ns) || a.port.localeCompare(b.port));
    const rank = (n) => (n === status.node ? 0 : n === 'outside' || n === 'unknown' ? 2 : 1);
    const order = [...nodes.keys()].sort((a, b) => rank(a) - rank(b) || nodes.get(b).weight - nodes.get(a).weight || a.localeCompare(b));
    const columns = order.slice(0, MOST_NODES);
    const text = JSON.stringify([columns, lines.map((l) => [l.name, l.ns, l.port, [...l.by]])]);
    if (text === mapNow) return;
    mapNow = text;
    const top = el('tr');
    const corner = el('th', '', 'Service');
    corner.scope = 'col';
    top.append(corner);
    for (const node of columns) {
      const th = el('th', node === status.node ? 'here' : '', node);
      th.scope = 'col';
      const note = [node === status.node ? 'this node' : '', nodes.get(node).zone].filter(Boolean).join(', ');
      th.append(el('small', '', note || '\u00a0'));
      top.append(th);
    }
    byId('map-head').replaceChildren(top);
    const body = [];
    for (const line of lines) {
      const tr = el('tr');
      const th = el('th');
      th.scope = 'row';
      th.append(el('span', 'name', line.name), ' ', el('span', 'ns', line.ns), ' ', el('span', 'port', line.port));
      tr.append(th);
      for (const node of columns) {
        const cell = line.by.get(node);
        const td = el('td', cell ? '' : 'none', cell ? (cell.good === cell.all ? `${cell.good} usable` : `${cell.good} of ${cell.all}${cell.out ? ', ejected' : ''}`) : '–');
        if (cell) td.dataset.state = cell.good + cell.out === 0 ? 'bad' : cell.good < cell.all ? 'warn' : 'good';
        tr.append(td);
      }
      body.push(tr);
    }
    if (!body.length) {
      const tr = el('tr');
      tr.append(el('td', 'empty', 'No service has endpoints.'));
      body.push(tr);
    }
    byId('map-rows').replaceChildren(...body);
    const left = order.length - columns.length;
    put(byId('map-more'), left > 0 ? `${several(left, 'node with fewer backends is', 'nodes with fewer backends are')} not shown.` : '');
  };

  // === Explain ===

  const VERDICT = { proxied: ['Proxied', 'good'], refused: ['Refused', 'bad'], 'not-intercepted': ['Not intercepted', 'dim'] };
  const explain = async () => {
    const target = byId('target').value.trim();
    const box = byId('answer');
    if (!target) { byId('target').focus(); return; }
    try {
      const response = await fetch(`/api/v1/resolve?target=${encodeURIComponent(target)}`);
      const answer = await response.json();
      if (!response.ok) { box.replaceChildren(word('Not understood', 'warn'), el('p', '', answer.error)); return; }
      const [text, state] = VERDICT[answer.verdict] ?? [answer.verdict, 'dim'];
      const first = el('p');
      first.append(word(text, state), ` ${answer.why}`);
      box.replaceChildren(first);
      if (answer.service) {
        const { namespace, name, port, protocol } = answer.service;
        box.append(el('p', 'dim', `${namespace}/${name} ${port}/${protocol} at ${answer.frontend}, ${answer.mode}, ${answer.policy}`));
      }
      for (const note of answer.notes ?? []) box.append(el('p', 'dim', note));
      if (answer.backends.length) box.append(backendTable(answer.backends, true));
    } catch {
      box.replaceChildren(word('No answer', 'bad'), el('p', '', 'The agent does not answer.'));
    }
  };

  // === Events ===

  let heard = 0;
  const live = (state, text) => { mark(byId('live'), state); put(byId('live-word'), text); };
  const tick = () => {
    if (!heard) return;
    const seconds = (Date.now() - heard) / 1000;
    put(byId('live-when'), seconds < 10 ? '' : `last news ${age(seconds)} ago`);
    if (seconds > 30) live('bad', 'No news');
  };
  const connect = () => {
    const events = new EventSource('/api/v1/events');
    events.addEventListener('status', (event) => {
      view = JSON.parse(event.data);
      heard = Date.now();
      live('good', 'Live');
      remember(view);
      head(view);
      figures(view);
      attention(view);
      services();
      map(view);
      tick();
    });
    events.addEventListener('error', () => {
      live('bad', 'Connection lost');
      announce('The connection to the agent is lost. What is shown is the last state known.');
      // After an answer that is no stream, the browser does not come again by itself.
      if (events.readyState === EventSource.CLOSED) { events.close(); setTimeout(connect, 5000); }
    });
  };

  byId('filter').addEventListener('input', services);
  byId('trouble').addEventListener('change', services);
  for (const th of document.querySelectorAll('th[data-sort]')) {
    th.firstElementChild.addEventListener('click', () => {
      const by = th.dataset.sort;
      sort = { by, down: sort.by === by ? !sort.down : by !== 'name' };
      for (const other of document.querySelectorAll('th[data-sort]')) other.removeAttribute('aria-sort');
      th.setAttribute('aria-sort', sort.down ? 'descending' : 'ascending');
      services();
    });
  }
  byId('ask').addEventListener('click', explain);
  byId('target').addEventListener('keydown', (event) => { if (event.key === 'Enter') explain(); });
  setInterval(tick, 1000);
  connect();
})();
