"use strict";
/* A cursor on every chart: the pointer or the arrow keys move it, and the legend shows the values there. */
(function () {
  function si(v) {
    var units = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]];
    for (var i = 0; i < 4; i++) if (v >= units[i][0]) return (v / units[i][0]).toPrecision(4) + units[i][1];
    return String(Math.round(v));
  }
  function two(v) { return (v < 10 ? "0" : "") + v; }
  function time(s) {
    s = Math.round(s);
    var h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60;
    if (s < 3600) return m + " min " + two(s % 60) + " s";
    return h < 48 ? h + " h " + two(m) + " min" : Math.floor(h / 24) + " d " + two(h % 24) + " h";
  }
  function text(v, unit) {
    if (unit === "%") return v.toFixed(v >= 1 && v < 99 ? 1 : 2) + "%";
    if (Math.abs(v) >= 999.5 && Math.abs(v) < 1e9) return Math.round(v).toLocaleString("en");
    return v === 0 ? "0" : Math.abs(v) < 0.01 || Math.abs(v) >= 1e9 ? v.toExponential(2) : v.toPrecision(4);
  }
  document.querySelectorAll("figure[data-unit]").forEach(function (figure) {
    var at = figure.querySelector("[data-at]"), slots = {}, latest = [], rest = at && at.textContent;
    figure.querySelectorAll("[data-value]").forEach(function (b) {
      slots[b.dataset.value] = b;
      latest.push([b, b.textContent]);
    });
    figure.querySelectorAll("svg.plot").forEach(function (svg) {
      var d = svg.dataset, x0 = +d.x0, x1 = +d.x1, y0 = +d.y0, y1 = +d.y1, log = d.log === "1", lines = null;
      var cursor = document.createElementNS(svg.namespaceURI, "line"), place = 1000;
      cursor.setAttribute("class", "cursor");
      cursor.setAttribute("y2", "100%");
      function read() {
        lines = [];
        svg.querySelectorAll("path[data-label]").forEach(function (path) {
          lines.push([path.dataset.label, path.getAttribute("d").match(/-?[\d.]+,-?[\d.]+/g).map(function (pair) {
            return pair.split(",").map(Number);
          })]);
        });
      }
      function value(y) {
        if (!log) return y1 - y / 1000 * (y1 - y0);
        return Math.pow(10, Math.log10(y1) - y / 1000 * (Math.log10(y1) - Math.log10(y0)));
      }
      function show(x) {
        if (!lines) read();
        place = Math.max(0, Math.min(1000, x));
        cursor.setAttribute("x1", place / 10 + "%");
        cursor.setAttribute("x2", place / 10 + "%");
        svg.appendChild(cursor);
        var seen = x0 + place / 1000 * (x1 - x0);
        at.textContent = "at " + (d.kind === "tokens" ? si(seen) + " slots" : time(seen));
        lines.forEach(function (line) {
          var best = line[1][0], first = 1000, last = 0;
          line[1].forEach(function (p) {
            if (Math.abs(p[0] - place) < Math.abs(best[0] - place)) best = p;
            first = Math.min(first, p[0]);
            last = Math.max(last, p[0]);
          });
          /* Where a run had not begun, or had ended, it has no value. */
          var reaches = place > first - 15 && place < last + 15;
          if (slots[line[0]]) slots[line[0]].textContent = reaches ? text(value(best[1]), figure.dataset.unit) : "\u2013";
        });
      }
      function leave() {
        cursor.remove();
        at.textContent = rest;
        latest.forEach(function (pair) { pair[0].textContent = pair[1]; });
      }
      svg.setAttribute("tabindex", "0");
      svg.addEventListener("pointermove", function (e) {
        var box = svg.getBoundingClientRect();
        show((e.clientX - box.left) / box.width * 1000);
      });
      svg.addEventListener("pointerleave", leave);
      svg.addEventListener("blur", leave);
      svg.addEventListener("focus", function () { if (svg.matches(":focus-visible")) show(place); });
      svg.addEventListener("keydown", function (e) {
        var step = { ArrowLeft: -10, ArrowRight: 10, PageDown: -100, PageUp: 100, Home: -1000, End: 1000 }[e.key];
        if (step) { e.preventDefault(); show(place + step); }
        if (e.key === "Escape") leave();
      });
    });
    at.parentNode.setAttribute("aria-live", "polite");
  });
})();
