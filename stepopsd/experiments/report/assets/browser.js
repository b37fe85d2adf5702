"use strict";
// The transcript browser: reads the JSON beside it, builds everything with textContent, needs no network.
addEventListener("error", (event) => {
  document.documentElement.dataset.scriptError = event.message;
});

(() => {
  const root = document.getElementById("browser");
  if (!root) return;
  const data = JSON.parse(document.getElementById("transcript-data").textContent);
  const MODES = {
    shaped: { name: "advantage Ã", of: (k) => k.shaped, middle: 0 },
    change: { name: "change Ã/A − 1", of: (k) => (k.plain ? k.shaped / k.plain - 1 : 0), middle: 0 },
    weight: { name: "weight w", of: (k) => (k.weight === null ? 0 : k.weight - 1), middle: 1 },
    delta: { name: "teacher gap Δ", of: (k) => k.delta || 0, middle: 0 },
  };
  const state = { run: data.start.run, group: data.start.group, mode: data.start.mode, panes: data.start.panes };
  const find = (name) => root.querySelector(`[data-part="${name}"]`);
  const readout = find("readout");
  const hint = readout.textContent;

  const make = (tag, classes, text) => {
    const node = document.createElement(tag);
    if (classes) node.className = classes;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const digits = (value, count = 4) => {
    if (value === null || Number.isNaN(value)) return "–";
    const size = Math.abs(value).toFixed(count);
    return Number(size) === 0 ? size : (value < 0 ? "−" : "+") + size;
  };
  const short = (value) => Number(value.toPrecision(3)).toString().replace("-", "−");
  const group = () => data.runs[state.run].groups[state.group];

  // One token's numbers under one method.
  const token = (turn, credit, i) => {
    const at = (values) => (Array.isArray(values) ? values[i] : values);
    const plain = at(turn.A);
    const shaped = turn.s[credit] === null ? plain : at(turn.s[credit]);
    const weight = turn.w[credit] === null ? null : at(turn.w[credit]);
    return {
      text: turn.t[i], plain, shaped, weight, delta: turn.d === null ? null : at(turn.d),
      logp: turn.l === null ? null : at(turn.l), inside: turn.n[i] === "1",
    };
  };
  const tokens = (turn, credit) => turn.t.map((_, i) => token(turn, credit, i));
  const everything = () =>
    group().members.flatMap((m) => m.turns.flatMap((t) => group().credits.flatMap((_, c) => tokens(t, c))));

  // Full colour at the 98th percentile of what is not 0, so that one outlier dims nothing.
  const measured = new Map();
  let scales = {};
  const measure = () => {
    if (measured.has(group())) {
      scales = measured.get(group());
      return;
    }
    scales = {};
    measured.set(group(), scales);
    const all = everything();
    for (const [name, mode] of Object.entries(MODES)) {
      const sizes = all.map((k) => Math.abs(mode.of(k))).filter((v) => v > 1e-7).sort((a, b) => a - b);
      scales[name] = sizes.length ? sizes[Math.floor(0.98 * (sizes.length - 1))] : 0;
    }
  };
  const paint = (node, value, scale) => {
    const x = scale ? Math.max(-1, Math.min(1, value / scale)) : 0;
    node.classList.remove("plus", "minus");
    if (Math.abs(x) < 0.01) return;
    node.classList.add(x > 0 ? "plus" : "minus");
    node.style.setProperty("--x", Math.abs(x).toFixed(3));
  };

  const numbers = (k) => {
    const parts = [`A ${digits(k.plain)}`, `Ã ${digits(k.shaped)}`];
    if (k.weight !== null) parts.push(`w ${k.weight.toFixed(4)}`);
    if (k.delta !== null) parts.push(`Δ ${digits(k.delta)}`);
    if (k.logp !== null) parts.push(`log p ${digits(k.logp)}`);
    if (k.logp !== null && k.delta !== null && k.inside) parts.push(`teacher's log p ${digits(k.logp + k.delta)}`);
    if (!k.inside) parts.push("outside the scored span");
    return parts;
  };
  const tell = (k) => {
    readout.replaceChildren(make("b", "", JSON.stringify(k.text)), ...numbers(k).map((t) => make("span", "", t)));
  };

  const drawStep = (turn, number, pane, chosen) => {
    const step = make("div", "step");
    step.id = `${pane.id}-step-${number}`;
    const head = step.appendChild(make("header"));
    head.append(make("b", "", `step ${number}`));
    if (!turn.v) head.append(make("span", "lost", "invalid action"));
    if (turn.o.length > 420) {
      const more = step.appendChild(make("details", "obs"));
      more.append(make("summary", "", `${turn.o.slice(0, 90).replaceAll("\n", " ")} …`), turn.o);
    } else step.append(make("div", "obs", turn.o));
    const say = step.appendChild(make("div", "say"));
    const values = [];
    tokens(turn, chosen.credit).forEach((k, i) => {
      const node = say.appendChild(make("span", k.inside ? "t" : "t out", k.text));
      node.id = `${step.id}-${i}`;
      node.title = numbers(k).join("  ");
      const value = MODES[state.mode].of(k);
      paint(node, value, scales[state.mode]);
      if (k.inside) values.push(value);
      pane.known.set(node, k);
      pane.tokens.push({ node, k, step: number });
    });
    const mean = values.length ? values.reduce((a, b) => a + b, 0) / values.length : 0;
    head.append(make("span", "", `mean ${digits(mean + (state.mode === "weight" && values.length ? 1 : 0), 3)}`));
    return { step, mean };
  };

  const drawPane = (index) => {
    const pane = panes[index], chosen = state.panes[index], member = group().members[chosen.member];
    pane.tokens = [];
    pane.known = new Map();
    pane.here = -1;
    const facts = [`member ${member.id}`, `${member.turns.length} steps`];
    if (member.status) facts.push(member.status.replaceAll("_", " "));
    if (member.reward !== null) facts.push(`reward ${short(member.reward)}`);
    if (member.a !== null) facts.push(`A = ${digits(member.a, 3)}`);
    pane.outcome.replaceChildren(
      make("b", member.won ? "won" : "lost", member.won ? "won" : "lost"), ` · ${facts.join(" · ")}`,
    );
    const drawn = member.turns.map((turn, i) => drawStep(turn, i + 1, pane, chosen));
    pane.words.replaceChildren(...drawn.map((d) => d.step));
    pane.strip.replaceChildren(...drawn.map((d, i) => {
      const link = make("a");
      link.href = `#${d.step.id}`;
      link.title = `step ${i + 1}`;
      link.tabIndex = -1;
      link.addEventListener("click", (event) => {
        event.preventDefault();
        d.step.scrollIntoView({ block: "start" });
      });
      paint(link, d.mean, scales[state.mode]);
      return link;
    }));
  };

  const fill = (select, names, value) => {
    select.replaceChildren(...names.map((name, i) => new Option(name, i, false, i === value)));
  };
  const memberName = (m) => `${m.won ? "won" : "lost"} · member ${m.id}` + (m.a === null ? "" : ` · A ${digits(m.a, 2)}`);

  const draw = () => {
    measure();
    const own = group(), groups = data.runs[state.run].groups;
    fill(find("run"), data.runs.map((r) => r.name), state.run);
    const updates = [...new Set(groups.map((g) => g.update))];
    fill(find("update"), updates.map(String), updates.indexOf(own.update));
    const peers = groups.filter((g) => g.update === own.update);
    fill(find("group"), peers.map((g) => `${g.group} · ${g.members.filter((m) => m.won).length} of ` +
      `${g.members.length} won · ${g.goal}`), peers.indexOf(own));
    find("about").textContent = [own.kind, own.task, own.whole ? "whole group" : "part of its group"]
      .filter(Boolean).join(" · ");
    for (const input of root.querySelectorAll("input[name=mode]")) {
      input.disabled = !scales[input.value];
      input.checked = input.value === state.mode;
    }
    const mode = MODES[state.mode], full = scales[state.mode];
    find("low").textContent = short(mode.middle - full);
    find("high").textContent = short(mode.middle + full);
    find("middle").textContent = `${mode.name}, uncoloured at ${mode.middle}`;
    const why = own.absent.map(([name, reason]) => `${name} ${reason}`);
    find("absent").textContent = why.length ? `Not computable from the record: ${why.join("; ")}.` : "";
    panes.forEach((pane, i) => {
      fill(pane.member, own.members.map(memberName), state.panes[i].member);
      fill(pane.credit, own.credits, state.panes[i].credit);
      drawPane(i);
    });
    readout.textContent = hint;
  };

  // The choice lives in the address, so that a view can be linked: #t=run.group.mode.member.credit.member.credit
  const remember = () => {
    const flat = [state.run, state.group, state.mode, ...state.panes.flatMap((p) => [p.member, p.credit])];
    try {
      history.replaceState(null, "", `#t=${flat.join(".")}`);
    } catch { /* a browser that forbids it for files */ }
  };
  const recall = () => {
    const found = /^#t=(\d+)\.(\d+)\.([a-z]+)\.(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(location.hash);
    if (!found) return false;
    const [run, index, mode, ...rest] = found.slice(1).map((v) => (/^\d+$/.test(v) ? Number(v) : v));
    const own = data.runs[run]?.groups[index];
    const inside = own && MODES[mode] && [0, 2].every((i) => rest[i] < own.members.length)
      && [1, 3].every((i) => rest[i] < own.credits.length);
    if (!inside) return false;
    Object.assign(state, { run, group: index, mode });
    state.panes = [{ member: rest[0], credit: rest[1] }, { member: rest[2], credit: rest[3] }];
    return true;
  };
  const settle = () => {
    const { members, credits } = group();
    const first = (won) => Math.max(0, members.findIndex((m) => m.won === won));
    state.panes.forEach((pane, i) => {
      if (data.start.same) pane.member = Math.min(pane.member, members.length - 1);
      else pane.member = first(i === 0);
      pane.credit = Math.min(pane.credit, credits.length - 1);
    });
    measure();
    if (!scales[state.mode]) state.mode = "shaped";
  };

  const panes = [...root.querySelectorAll(".pane")].map((node, index) => {
    const part = (name) => node.querySelector(`[data-part="${name}"]`);
    const pane = { id: `pane-${index}`, tokens: [], known: new Map(), here: -1 };
    for (const name of ["member", "credit", "outcome", "strip", "words"]) pane[name] = part(name);
    for (const name of ["member", "credit"]) {
      pane[name].addEventListener("change", () => {
        state.panes[index][name] = pane[name].selectedIndex;
        drawPane(index);
        remember();
      });
    }
    pane.words.addEventListener("mouseover", (event) => {
      const hit = pane.known.get(event.target);
      if (hit) tell(hit);
    });
    const go = (to) => {
      pane.tokens[pane.here]?.node.classList.remove("here");
      pane.here = Math.max(0, Math.min(pane.tokens.length - 1, to));
      const { node, k } = pane.tokens[pane.here];
      node.classList.add("here");
      node.scrollIntoView({ block: "nearest" });
      pane.words.setAttribute("aria-activedescendant", node.id);
      tell(k);
    };
    const nextStep = (by) => {
      const now = pane.tokens[Math.max(0, pane.here)].step + by;
      const to = pane.tokens.findIndex((t) => t.step === now);
      return to < 0 ? pane.here : to;
    };
    pane.words.addEventListener("keydown", (event) => {
      const moves = {
        ArrowRight: () => pane.here + 1, ArrowLeft: () => pane.here - 1, ArrowDown: () => nextStep(1),
        ArrowUp: () => nextStep(-1), Home: () => 0, End: () => pane.tokens.length - 1,
      };
      if (!moves[event.key] || !pane.tokens.length || event.target !== pane.words) return;
      event.preventDefault();
      go(moves[event.key]());
    });
    return pane;
  });

  find("run").addEventListener("change", (event) => {
    state.run = event.target.selectedIndex;
    state.group = 0;
    settle(), draw(), remember();
  });
  find("update").addEventListener("change", (event) => {
    const groups = data.runs[state.run].groups, updates = [...new Set(groups.map((g) => g.update))];
    state.group = groups.findIndex((g) => g.update === updates[event.target.selectedIndex]);
    settle(), draw(), remember();
  });
  find("group").addEventListener("change", (event) => {
    const groups = data.runs[state.run].groups, peers = groups.filter((g) => g.update === group().update);
    state.group = groups.indexOf(peers[event.target.selectedIndex]);
    settle(), draw(), remember();
  });
  for (const input of root.querySelectorAll("input[name=mode]")) {
    input.addEventListener("change", () => {
      state.mode = input.value;
      draw(), remember();
    });
  }
  addEventListener("hashchange", () => recall() && draw());
  recall();
  draw();
  root.dataset.ready = "yes";
})();
