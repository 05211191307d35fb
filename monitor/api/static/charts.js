// Draws every [data-chart] with uPlot: what is usual behind, anomalous windows shaded, times in UTC.
"use strict";
(() => {
  const HALF_HOUR_S = 1800;
  const drawn = new Map();
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const two = (n) => String(n).padStart(2, "0");

  function clock(s) {
    const at = new Date(s * 1000);
    return `${two(at.getUTCHours())}:${two(at.getUTCMinutes())}`;
  }
  const day = (s) => new Date(s * 1000).toISOString().slice(5, 10);

  const LARGE = [[1e12, 1e12, "T"], [1e9, 1e9, "G"], [1e6, 1e6, "M"], [1e4, 1e3, "k"]];

  function digits(value, most) {
    if (value === 0) return "0";
    const [, by, letter] = LARGE.find(([from]) => Math.abs(value) >= from) || [0, 1, ""];
    return `${Number((value / by).toPrecision(most))}${letter}`;
  }

  function quantity(unit, value, most = 3) {
    if (value === null || value === undefined) return "-";
    if (unit === "ms") return Math.abs(value) >= 1000 ? `${digits(value / 1000, most)} s` : `${digits(value, most)} ms`;
    if (unit === "share") return `${digits(value * 100, most)}%`;
    if (unit === "MB") return Math.abs(value) >= 10240 ? `${digits(value / 1024, most)} GB` : `${digits(value, most)} MB`;
    if (unit === "$") return `$${digits(value, most)}`;
    if (unit === "one in") return value < 1.5 ? "every" : `1 in ${digits(value, most)}`;
    return digits(value, most);
  }

  // As few digits as tell the labels of an axis apart.
  function axisLabels(unit, splits) {
    let labels = [];
    for (let most = 3; most <= 7; most++) {
      labels = splits.map((v) => (v === null ? "" : quantity(unit, v, most)));
      const known = labels.filter(Boolean);
      if (new Set(known).size === known.length) break;
    }
    return labels;
  }

  function scaleOf(chart) {
    const known = chart.v.filter((v) => v !== null);
    let low = Math.min(...known), high = Math.max(...known);
    if (!known.length) return [0, 1];
    if (chart.log) return [1, Math.max(high * 1.5, 10)];
    for (const band of [chart.day, chart.told]) {
      if (!band) continue;
      low = Math.min(low, band[0]);
      if (band[1] <= high * 3) high = Math.max(high, band[1]);
    }
    if (low >= 0 && low < high * 0.6) low = 0;
    const room = (high - low || Math.abs(high) || 1) * 0.08;
    return [low === 0 ? 0 : low - room, high + room];
  }

  function backdrop(chart) {
    return (u) => {
      const { ctx } = u;
      const { left, top, width, height } = u.bbox;
      const x = (s) => Math.min(Math.max(u.valToPos(s, "x", true), left), left + width);
      const y = (v) => Math.min(Math.max(u.valToPos(v, "y", true), top), top + height);
      const fill = (colour, x0, x1, y0, y1) => {
        ctx.fillStyle = colour;
        ctx.fillRect(x0, y0, Math.max(x1 - x0, 2 * devicePixelRatio), Math.max(y1 - y0, devicePixelRatio));
      };
      ctx.save();
      if (chart.day) fill(css("--chart-day"), left, left + width, y(chart.day[1]), y(chart.day[0]));
      for (const [from, to] of chart.hot || []) fill(css("--chart-hot"), x(from), x(to), top, top + height);
      if (chart.told && chart.span) {
        const x0 = x(chart.span[0] - HALF_HOUR_S), x1 = x(chart.span[1] + HALF_HOUR_S);
        fill(css("--chart-told"), x0, x1, y(chart.told[1]), y(chart.told[0]));
        for (const edge of chart.told) fill(css("--chart-told-edge"), x0, x1, y(edge), y(edge));
      }
      ctx.strokeStyle = css("--chart-mark");
      ctx.fillStyle = css("--chart-mark");
      ctx.lineWidth = devicePixelRatio;
      ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
      ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
      for (const [at, name] of chart.marks || []) {
        ctx.beginPath();
        ctx.moveTo(x(at), top);
        ctx.lineTo(x(at), top + height);
        ctx.stroke();
        const shown = name.slice(0, 24), away = 4 * devicePixelRatio;
        const fits = x(at) + away + ctx.measureText(shown).width <= left + width;
        ctx.textAlign = fits ? "left" : "right";
        ctx.fillText(shown, x(at) + (fits ? away : -away), top + 11 * devicePixelRatio);
      }
      ctx.restore();
    };
  }

  function powers(u, axis, low, high) {
    const found = [];
    for (let p = Math.ceil(Math.log10(low)); p <= Math.log10(high); p++) found.push(10 ** p);
    return found;
  }

  function timeLabels(u, splits) {
    let before = "";
    return splits.map((s) => {
      const today = day(s);
      const label = today !== before ? `${clock(s)}\n${today}` : clock(s);
      before = today;
      return label;
    });
  }

  function read(box) {
    const chart = JSON.parse(box.dataset.chart);
    const shared = box.dataset.shared && document.getElementById(box.dataset.shared);
    return shared ? { ...JSON.parse(shared.dataset.values), ...chart } : chart;
  }

  function draw(box) {
    const old = drawn.get(box);
    if (old) old.plot.destroy();
    const chart = read(box);
    const empty = !chart.v.some((v) => v !== null);
    box.classList.toggle("none", empty);
    if (empty) {
      box.textContent = chart.t.length ? "not measured in these windows" : "no window of this time is stored";
      return;
    }
    const figure = box.closest("figure");
    const output = figure.querySelector("output");
    const axis = {
      stroke: css("--quiet"),
      grid: { stroke: css("--chart-grid"), width: 1 },
      ticks: { show: false },
      font: "11px system-ui, sans-serif",
    };
    const few = chart.t.length <= 60;
    const options = {
      width: Math.max(box.clientWidth, 120),
      height: figure.classList.contains("big") ? 260 : 160,
      padding: [8, 8, 0, 0],
      legend: { show: false },
      cursor: { y: false, sync: chart.steps ? undefined : { key: "time" }, drag: { x: true, y: false } },
      scales: {
        x: { time: !chart.steps },
        y: { range: () => scaleOf(chart), distr: chart.log ? 3 : 1 },
      },
      axes: [
        { ...axis, size: chart.steps ? 26 : 38, gap: 4, space: 56, values: chart.steps ? undefined : timeLabels },
        { ...axis, size: 62, gap: 6, space: 32, splits: chart.log ? powers : undefined, values: (u, splits) => axisLabels(chart.unit, splits) },
      ],
      series: [{}, {
        stroke: css("--chart-line"),
        width: 1.6,
        points: { show: few, size: 5, fill: css("--chart-line") },
        spanGaps: false,
      }],
      hooks: {
        drawClear: [backdrop(chart)],
        setCursor: [(u) => {
          const at = u.cursor.idx;
          const known = at !== null && at !== undefined;
          const when = !known ? "" : chart.steps ? `step ${chart.t[at]}` : `${day(chart.t[at])} ${clock(chart.t[at])}`;
          output.textContent = known ? `${when}  ${quantity(chart.unit, chart.v[at])}` : "";
        }],
      },
    };
    box.replaceChildren();
    drawn.set(box, { plot: new uPlot(options, [chart.t, chart.v], box), width: box.clientWidth });
  }

  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const known = drawn.get(target);
      if (known && target.clientWidth && target.clientWidth !== known.width) {
        known.width = target.clientWidth;
        known.plot.setSize({ width: target.clientWidth, height: known.plot.height });
      }
    }
  });

  function drawAll() {
    for (const [box, { plot }] of drawn) {
      if (!box.isConnected) {
        plot.destroy();
        drawn.delete(box);
        sizes.unobserve(box);
      }
    }
    for (const box of document.querySelectorAll("[data-chart]")) {
      if (drawn.has(box)) continue;
      draw(box);
      sizes.observe(box);
    }
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const box of [...drawn.keys()]) draw(box);
  });
  document.addEventListener("htmx:oobAfterSwap", drawAll);
  document.addEventListener("htmx:afterSettle", drawAll);
  drawAll();
})();
