"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const block = (id) => JSON.parse($(id).textContent);
  const index = block("index");
  const MARK = { solved: ["✓", "good"], unsolved: ["✗", "bad"], error: ["!", "bad"], unknown: ["·", "soft"] };
  const CHECK = { holds: ["✓", "good", "equations hold"], false: ["✗", "bad", "an equation is false"], unknown: ["?", "soft", "an equation could not be computed"] };
  const FILTERS = [
    ["all", "All", () => true],
    ["solved", "Solved", (p) => p.status === "solved"],
    ["unsolved", "Unsolved", (p) => p.status === "unsolved" || p.status === "error"],
    ["lucky", "Lucky", (p) => p.lucky],
    ["split", "Split vote", (p) => p.disagreement],
  ];
  const PRUNED = {
    rank: "left out: others ranked higher", depth: "at the depth cap", stuck: "the policy wrote nothing more",
    length: "the solution was cut by a cap",
  };
  const SPARE = 12; // rows drawn beyond the visible ones

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }
  const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
  const short = (number, digits = 2) => (number === null || number === undefined ? "" : number.toFixed(digits));
  const cut = (text, length) => (text.length > length ? text.slice(0, length - 1) + "…" : text);
  const band = (q) => Math.min(6, Math.max(0, Math.floor(q * 7)));
  function qbar(q) {
    const bar = make("span", "qbar");
    const fill = bar.appendChild(make("i", `fill${band(q)}`));
    fill.style.width = `${100 * q}%`;
    return bar;
  }

  // --- the list of problems ---------------------------------------------------------------------------------------
  const state = { filter: "all", source: null, find: "", shown: [], current: -1 };

  function matches(problem) {
    if (state.source !== null && problem.source !== state.source) return false;
    if (!state.find) return true;
    return [problem.question, problem.id, problem.answer || ""].some((text) => text.toLowerCase().includes(state.find));
  }

  function listProblems() {
    const found = index.problems.map((problem, number) => [problem, number]).filter(([problem]) => matches(problem));
    $("filters").replaceChildren(...FILTERS.map(([name, label, keep]) => {
      const button = make("button", "", `${label} ${found.filter(([problem]) => keep(problem)).length}`);
      button.type = "button";
      button.dataset.filter = name;
      button.setAttribute("aria-pressed", String(state.filter === name));
      button.addEventListener("click", () => { state.filter = name; listProblems(); $("filters").querySelector(`[data-filter=${name}]`).focus(); });
      return button;
    }));
    const keep = FILTERS.find(([name]) => name === state.filter)[2];
    state.shown = found.filter(([problem]) => keep(problem)).map(([, number]) => number);
    $("problems").replaceChildren(...state.shown.map(item));
    if (!state.shown.length) $("problems").append(make("p", "none", "No problem matches."));
    if (state.shown.length && !state.shown.includes(state.current)) open(state.shown[0]);
    else markCurrent();
  }

  function item(number) {
    const problem = index.problems[number];
    const element = make("div", "item");
    element.id = `problem-${number}`;
    element.setAttribute("role", "option");
    const [sign, tone] = MARK[problem.status];
    const mark = element.appendChild(make("span", `mark ${tone}`, sign));
    mark.title = problem.status;
    element.append(make("bdi", "q", cut(problem.question, 300)));
    const meta = element.appendChild(make("span", "meta"));
    meta.append(make("bdi", "", cut(problem.answer === null ? "no answer" : `answer ${problem.answer}`, 40)));
    if (problem.status === "unsolved") meta.append(make("bdi", "", cut(`right ${problem.gold}`, 40)));
    meta.append(make("span", "num", count(problem.nodes, "node")));
    if (problem.lucky) meta.append(make("span", "tag warn", "lucky"));
    if (problem.disagreement) meta.append(make("span", "tag", "split vote"));
    element.addEventListener("click", () => { open(number); leaveList(); });
    return element;
  }

  function markCurrent() {
    for (const element of $("problems").children) element.setAttribute("aria-selected", String(element.id === `problem-${state.current}`));
    const element = $(`problem-${state.current}`);
    if (element) {
      $("problems").setAttribute("aria-activedescendant", element.id);
      element.scrollIntoView({ block: "nearest" });
    }
  }

  function moveProblem(by) {
    const place = state.shown.indexOf(state.current) + by;
    if (place >= 0 && place < state.shown.length) open(state.shown[place]);
  }

  function leaveList() {
    $("app").classList.remove("listing");
  }

  // --- one problem ------------------------------------------------------------------------------------------------
  let tree = null; // columns of the open tree, with children, depth and sets added
  let at = 0; // steps of the replay that have happened; all of them at first
  let opened = new Set(); // nodes whose children are shown
  let rows = []; // node indices in view order
  let picked = 0;
  let timer = null;

  function open(number) {
    stop();
    state.current = number;
    const problem = index.problems[number];
    tree = block(`tree-${number}`);
    tree.children = tree.parent.map(() => []);
    tree.depth = tree.parent.map(() => 0);
    tree.parent.forEach((parent, node) => {
      if (parent < 0) return;
      tree.children[parent].push(node);
      tree.depth[node] = tree.depth[parent] + 1;
    });
    tree.onPath = new Set(tree.path);
    tree.luckySet = new Set(tree.lucky);
    tree.stepOf = new Map(tree.events.map((node, step) => [node, step]));
    at = tree.events.length;
    $("scrub").max = at;
    $("scrub").value = at;
    showProblem(problem);
    opened = new Set();
    if (tree.parent.length <= 400) tree.children.forEach((below, node) => { if (below.length) opened.add(node); });
    else answerOnly();
    picked = tree.path.length ? tree.path[tree.path.length - 1] : 0;
    markCurrent();
    refresh();
    $("scroller").scrollTop = 0;
    if (tree.parent.length > 400) reveal(picked);
    showStep();
  }

  function showProblem(problem) {
    const [sign, tone] = MARK[problem.status];
    const verdict = make("span", tone, `${sign} ${problem.status === "unknown" ? "answer" : problem.status}`);
    const answer = make("bdi", "", ` ${problem.answer === null ? "no answer" : cut(problem.answer, 60)}`);
    $("verdict").replaceChildren(verdict, answer);
    if (problem.status === "unsolved" && problem.gold !== null) $("verdict").append(make("span", "soft", `, right: ${cut(problem.gold, 60)}`));
    if (problem.lucky) $("verdict").append(" ", make("span", "tag warn", "lucky"));
    $("question").textContent = problem.question;
    const facts = [problem.strategy, count(problem.spent, "token"), count(problem.expansions, "expansion"), count(problem.nodes, "node"), count(problem.solutions, "solution"), problem.id];
    if (problem.error) facts.push(`ended early: ${problem.error}`);
    $("facts").textContent = facts.join(" · ");
    $("votes").replaceChildren(...problem.shares.map(([answer, share]) => {
      const vote = make("span", answer === problem.answer ? "vote chosen" : "vote");
      const meter = make("span", "meter");
      meter.appendChild(make("i")).style.width = `${100 * share}%`;
      vote.append(make("bdi", "", answer), meter, make("span", "num", `${Math.round(100 * share)} %`));
      if (answer === problem.majority && problem.disagreement) vote.append(make("span", "soft", "majority"));
      return vote;
    }));
  }

  const exists = (node) => tree.born[node] < at;
  const taken = (node) => tree.stepOf.has(node) && tree.stepOf.get(node) < at;

  function flatten() {
    rows = [];
    const stack = [0];
    while (stack.length) {
      const node = stack.pop();
      rows.push(node);
      if (!opened.has(node)) continue;
      const below = tree.children[node];
      for (let i = below.length - 1; i >= 0; i--) if (exists(below[i])) stack.push(below[i]);
    }
  }

  function refresh() {
    flatten();
    if (!exists(picked)) picked = at ? tree.events[at - 1] : 0;
    if (!rows.includes(picked)) picked = nearestShown(picked);
    $("space").style.height = `${rows.length * rowHeight()}px`;
    $("scroller").setAttribute("aria-rowcount", String(rows.length + 1));
    draw();
    showDetail();
  }

  function nearestShown(node) {
    const shown = new Set(rows);
    while (node > 0 && !shown.has(node)) node = tree.parent[node];
    return node;
  }

  let height = 0;
  function rowHeight() {
    height = height || parseFloat(getComputedStyle($("app")).getPropertyValue("--row")) || 30;
    return height;
  }

  // Only the rows in sight exist in the page, whatever the size of the tree.
  function draw() {
    const scroller = $("scroller");
    const first = Math.max(0, Math.floor(scroller.scrollTop / rowHeight()) - SPARE);
    const last = Math.min(rows.length, Math.ceil((scroller.scrollTop + scroller.clientHeight) / rowHeight()) + SPARE);
    $("rows").style.transform = `translateY(${first * rowHeight()}px)`;
    const now = at < tree.events.length && at > 0 ? tree.events[at - 1] : -1;
    $("rows").replaceChildren(...rows.slice(first, last).map((node, i) => drawRow(node, first + i, now)));
    scroller.setAttribute("aria-activedescendant", `node-${picked}`);
  }

  function drawRow(node, place, now) {
    const row = make("div", "row");
    row.id = `node-${node}`;
    row.dataset.node = node;
    row.setAttribute("role", "row");
    row.setAttribute("aria-level", tree.depth[node] + 1);
    row.setAttribute("aria-rowindex", place + 2);
    row.setAttribute("aria-selected", String(node === picked));
    const below = tree.children[node].some(exists);
    if (below) row.setAttribute("aria-expanded", String(opened.has(node)));
    if (tree.onPath.has(node)) row.classList.add("on");
    if (node === picked) row.classList.add("picked");
    if (node === now) row.classList.add("now");
    if (tree.pruned[node] && !taken(node)) row.classList.add("left");

    const step = cell(row, "step");
    step.append(make("span", "ord", taken(node) && tree.order[node] !== null ? `#${tree.order[node]}` : ""));
    const indent = step.appendChild(make("span", "ind"));
    const narrow = $("tree").clientWidth <= 640;
    indent.style.width = `${Math.min(tree.depth[node], narrow ? 14 : 24) * (narrow ? 8 : 16)}px`;
    step.append(make("span", "twist", below ? (opened.has(node) ? "▼" : "▶") : ""));
    if (tree.onPath.has(node)) step.append(make("span", "star", "★"));
    step.append(make("span", "words", node ? cut(tree.text[node], 400) || "(empty)" : "question"));
    for (const [text, warn, title] of tags(node)) {
      const tag = step.appendChild(make("span", warn ? "tag warn" : "tag", text));
      tag.title = title;
    }
    const q = cell(row, "q");
    if (tree.value[node] !== null) q.append(qbar(tree.value[node]), make("span", "", short(tree.value[node])));
    cell(row, "n f", node && tree.value[node] !== null ? short(tree.f[node]) : "");
    cell(row, "n g", node ? short(tree.g[node]) : "");
    cell(row, "n h", short(tree.h[node]));
    const counted = tree.visits[node] > 0 && (at === tree.events.length || taken(node));
    cell(row, "n v", counted ? String(tree.visits[node]) : "");
    cell(row, "n p", node ? short(tree.p[node]) : "");
    const check = cell(row, "c");
    if (tree.check[node]) {
      const [sign, tone, title] = CHECK[tree.check[node]];
      const mark = check.appendChild(make("span", tone, sign));
      mark.title = title;
      mark.setAttribute("aria-label", title);
    }
    return row;
  }

  function cell(row, className, text) {
    const element = row.appendChild(make("span", className, text));
    element.setAttribute("role", "gridcell");
    return element;
  }

  function tags(node) {
    const found = [];
    if (tree.merged[node] > 1) found.push([`×${tree.merged[node]}`, false, `${tree.merged[node]} samples merged, ${1 + (tree.wordings[node] || []).length} wording(s)`]);
    if (node in tree.answer) {
      const right = tree.right[node];
      const sign = right === null ? "" : right ? " ✓" : " ✗";
      found.push([`= ${cut(tree.answer[node] ?? "none", 20)}${sign}`, right === false, right === null ? "answer" : right ? "right answer" : "wrong answer"]);
    }
    if (tree.luckySet.has(node)) found.push(["lucky", true, "right answer, but an equation before it is false"]);
    if (tree.pruned[node] && !(at < tree.events.length && taken(node))) found.push([tree.pruned[node], false, PRUNED[tree.pruned[node]] || ""]);
    return found;
  }

  function showDetail() {
    const node = picked;
    const parts = [];
    const title = make("h2");
    title.append(node ? `Step ${tree.depth[node]}` : "The question");
    parts.push(title);
    if (node) parts.push(make("span", "long", tree.text[node]));
    const figures = make("div", "figures num");
    const add = (name, text) => { if (text !== "") { const pair = make("div"); pair.append(make("span", "", `${name} `), text); figures.append(pair); } };
    add("Q", short(tree.value[node], 3));
    if (node) {
      add("f", tree.value[node] === null ? "" : short(tree.f[node], 3));
      add("g", short(tree.g[node], 3));
      add("h", short(tree.h[node], 3));
      add("probability", short(tree.p[node], 3));
    }
    add("visits", String(tree.visits[node]));
    if (tree.order[node] !== null) add("taken up", `#${tree.order[node]}`);
    if (node) add("came up at", `${tree.tokens[node]} tokens`);
    parts.push(figures);
    if (tree.pruned[node]) parts.push(make("p", "soft", `Not followed: ${PRUNED[tree.pruned[node]] || tree.pruned[node]}.`));
    section(parts, "Equations that do not hold", (tree.broken[node] || []).map((text) => make("span", "long bad", text)));
    section(parts, `Merged: ${tree.merged[node]} samples; other wordings`, (tree.wordings[node] || []).map((text) => make("span", "long", text)));
    const path = [];
    for (let n = node; n > 0; n = tree.parent[n]) path.unshift(n);
    section(parts, "The solution up to here", path.map((n) => {
      const line = make("div", "line");
      line.append(make("span", "long", tree.text[n]));
      const figure = line.appendChild(make("span", "num"));
      if (tree.value[n] !== null) figure.append(qbar(tree.value[n]), ` ${short(tree.value[n])}`);
      return line;
    }), "solution");
    $("detail").replaceChildren(...parts);
  }

  function section(parts, title, lines, className) {
    if (!lines.length) return;
    parts.push(make("h3", "", title));
    const list = make("ol", className);
    for (const line of lines) list.appendChild(make("li")).append(line);
    parts.push(list);
  }

  // --- moving about -----------------------------------------------------------------------------------------------
  function pick(node) {
    picked = node;
    const place = rows.indexOf(node);
    const scroller = $("scroller");
    const top = place * rowHeight();
    const space = scroller.clientHeight - 2 * rowHeight(); // the head covers one row
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (top > scroller.scrollTop + space) scroller.scrollTop = top - space;
    draw();
    showDetail();
  }

  function reveal(node) {
    for (let n = tree.parent[node]; n >= 0; n = tree.parent[n]) opened.add(n);
    picked = node;
    refresh();
    pick(node);
  }

  function toggle(node) {
    if (!tree.children[node].some(exists)) return;
    if (opened.has(node)) opened.delete(node);
    else opened.add(node);
    refresh();
  }

  function expandAll() {
    tree.children.forEach((below, node) => { if (below.length) opened.add(node); });
    refresh();
    pick(picked);
  }

  function answerOnly() {
    opened = new Set([0, ...tree.path]);
  }

  function toAnswer() {
    if (!tree.path.length) return;
    scrub(tree.events.length);
    reveal(tree.path[tree.path.length - 1]);
  }

  // --- replay -----------------------------------------------------------------------------------------------------
  function scrub(step) {
    at = Math.min(tree.events.length, Math.max(0, step));
    $("scrub").value = at;
    const all = at === tree.events.length;
    if (!all && at > 0) {
      const node = tree.events[at - 1];
      opened.add(node);
      reveal(node);
    } else {
      refresh();
      if (!at) pick(0);
    }
    showStep();
  }

  function showStep() {
    const total = tree.events.length;
    $("step").textContent = `${at} / ${total}`;
    $("scrub").setAttribute("aria-valuetext", `step ${at} of ${total}`);
    let text = "The question alone; nothing is sampled yet.";
    if (at === total) text = `The whole search: ${count(total, "step")}.`;
    else if (at > 0) {
      const node = tree.events[at - 1];
      const what = node in tree.answer ? "a solution" : "sampled after";
      const f = node && tree.value[node] !== null ? ` (f ${short(tree.f[node])})` : "";
      const turn = tree.order[node] === null ? `Step ${at}` : `#${tree.order[node]}`;
      text = `${turn}: ${what} ${node ? `“${cut(tree.text[node], 90)}”` : "the question"}${f}`;
      let rival = -1;
      let waiting = 0;
      for (let n = 1; n < tree.parent.length; n++) {
        if (!exists(n) || taken(n) || tree.pruned[n] === "depth" || tree.value[n] === null) continue;
        waiting += 1;
        if (rival < 0 || tree.f[n] < tree.f[rival]) rival = n;
      }
      text += rival < 0 ? "." : `. ${waiting} not taken up yet, smallest f ${short(tree.f[rival])}.`;
    }
    $("event").textContent = text;
    $("event").title = text;
  }

  function stop() {
    if (timer !== null) clearInterval(timer);
    timer = null;
    $("play").textContent = "▶";
    $("play").setAttribute("aria-label", "Play");
  }

  function play() {
    if (timer !== null) { stop(); return; }
    if (at === tree.events.length) scrub(0);
    $("play").textContent = "❚❚";
    $("play").setAttribute("aria-label", "Pause");
    timer = setInterval(() => {
      scrub(at + 1);
      if (at === tree.events.length) stop();
    }, Math.max(60, Math.min(700, 20000 / tree.events.length)));
  }

  const move = (step) => { stop(); scrub(step); };

  // --- events -----------------------------------------------------------------------------------------------------
  function onTreeKey(event) {
    const place = rows.indexOf(picked);
    const page = Math.max(1, Math.floor($("scroller").clientHeight / rowHeight()) - 2);
    const to = (where) => pick(rows[Math.min(rows.length - 1, Math.max(0, where))]);
    const open = opened.has(picked) && tree.children[picked].some(exists);
    const actions = {
      ArrowDown: () => to(place + 1),
      ArrowUp: () => to(place - 1),
      PageDown: () => to(place + page),
      PageUp: () => to(place - page),
      Home: () => to(0),
      End: () => to(rows.length - 1),
      ArrowRight: () => (open ? to(place + 1) : toggle(picked)),
      ArrowLeft: () => { if (open) toggle(picked); else if (picked) pick(tree.parent[picked]); },
      Enter: () => toggle(picked),
      " ": () => toggle(picked),
    };
    if (actions[event.key]) { actions[event.key](); event.preventDefault(); }
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
    if (event.target.matches("input[type=search], select")) {
      if (event.key === "Escape") $("scroller").focus();
      return;
    }
    const actions = {
      ",": () => move(at - 1), ".": () => move(at + 1), n: () => moveProblem(1), p: () => moveProblem(-1),
      e: expandAll, c: () => { answerOnly(); refresh(); pick(picked); }, a: toAnswer,
      "/": () => { $("app").classList.add("listing"); $("find").focus(); $("find").select(); },
      "?": () => $("keys").showModal(), Escape: leaveList,
    };
    if (actions[event.key]) { actions[event.key](); event.preventDefault(); }
  }

  function onListKey(event) {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (by) { moveProblem(by); event.preventDefault(); }
    if (event.key === "Enter") { leaveList(); $("scroller").focus(); event.preventDefault(); }
  }

  function start() {
    const sources = [...new Set(index.problems.map((problem) => problem.source))];
    if (sources.length > 1) {
      for (const source of sources) $("source").append(new Option(source, source));
      state.source = sources[0];
    } else $("source-label").hidden = true;
    const left = index.total > index.problems.length ? ` of ${index.total}` : "";
    $("about").textContent = `${index.name}: ${index.problems.length}${left} ${index.total === 1 ? "search tree" : "search trees"}`;
    for (let i = 0; i < 7; i++) $("scale").append(make("i", `fill${i}`));
    $("source").addEventListener("change", () => { state.source = $("source").value; listProblems(); });
    $("find").addEventListener("input", () => { state.find = $("find").value.trim().toLowerCase(); listProblems(); });
    $("problems").addEventListener("keydown", onListKey);
    $("open").addEventListener("click", () => $("app").classList.add("listing"));
    $("close").addEventListener("click", leaveList);
    $("help").addEventListener("click", () => $("keys").showModal());
    $("expand").addEventListener("click", expandAll);
    $("collapse").addEventListener("click", () => { answerOnly(); refresh(); pick(picked); });
    $("goto").addEventListener("click", toAnswer);
    $("scrub").addEventListener("input", () => move(Number($("scrub").value)));
    $("play").addEventListener("click", play);
    for (const button of document.querySelectorAll("[data-move]")) {
      button.addEventListener("click", () => move({ first: 0, back: at - 1, forward: at + 1, last: tree.events.length }[button.dataset.move]));
    }
    $("scroller").addEventListener("scroll", () => requestAnimationFrame(draw));
    $("scroller").addEventListener("keydown", onTreeKey);
    $("rows").addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (!row) return;
      const node = Number(row.dataset.node);
      picked = node;
      if (event.target.closest(".twist")) toggle(node);
      pick(node);
    });
    $("rows").addEventListener("dblclick", (event) => {
      const row = event.target.closest(".row");
      if (row && !event.target.closest(".twist")) toggle(Number(row.dataset.node));
    });
    document.addEventListener("keydown", onKey);
    new ResizeObserver(() => { height = 0; if (tree) refresh(); }).observe($("scroller"));
    listProblems();
  }

  start();
})();
