/* What a page is measured by in a browser; each function returns what is wrong. */
(function () {
  var canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true }), known = {};
  function rgb(text) {
    if (!known[text]) {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = text;
      canvas.fillRect(0, 0, 1, 1);
      known[text] = canvas.getImageData(0, 0, 1, 1).data;
    }
    return known[text];
  }
  function luminance(c) {
    var l = [0, 1, 2].map(function (n) {
      var v = c[n] / 255;
      return v <= 0.04045 ? v / 12.92 : Math.pow((v + 0.055) / 1.055, 2.4);
    });
    return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2];
  }
  function ratio(a, b) {
    var x = luminance(rgb(a)), y = luminance(rgb(b));
    return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
  }
  function behind(element) {
    for (var e = element; e; e = e.parentElement) {
      var colour = getComputedStyle(e).backgroundColor;
      if (rgb(colour)[3] === 255) return colour;
    }
    return "white";
  }
  function seen(element) {
    return element.checkVisibility();
  }
  window.checks = {
    faintText: function () {
      var wrong = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), node;
      while ((node = walker.nextNode())) {
        var e = node.parentElement, style = getComputedStyle(e);
        if (!node.data.trim() || !seen(e) || /^(script|style|title|desc)$/i.test(e.tagName)) continue;
        var colour = e instanceof SVGElement ? style.fill : style.color, size = parseFloat(style.fontSize);
        var large = size >= 24 || (size >= 18.66 && +style.fontWeight >= 700);
        var found = ratio(colour, behind(e));
        if (found < (large ? 3 : 4.5)) wrong.push(node.data.trim().slice(0, 40) + ": " + found.toFixed(2));
      }
      return wrong;
    },
    faintLines: function () {
      var wrong = [];
      document.querySelectorAll("path[data-label]").forEach(function (path) {
        var found = ratio(getComputedStyle(path).stroke, behind(path));
        if (seen(path) && found < 3) wrong.push(path.dataset.label + ": " + found.toFixed(2));
      });
      return wrong;
    },
    headings: function () {
      var level = 0, wrong = [];
      document.querySelectorAll("h1, h2, h3, h4").forEach(function (h) {
        var next = +h.tagName[1];
        if (next > level + 1 || (next === 1 && level)) wrong.push(h.textContent);
        level = next;
      });
      return level ? wrong : ["no heading"];
    },
    chartsWithoutText: function () {
      return Array.from(document.querySelectorAll("svg.plot")).filter(function (svg) {
        return svg.getAttribute("aria-labelledby").split(" ").some(function (id) {
          return document.getElementById(id).textContent.length < 5;
        });
      }).length;
    },
    wider: function () {
      return Array.from(document.querySelectorAll("body *")).filter(function (e) {
        return document.documentElement.scrollWidth > innerWidth && e.getBoundingClientRect().right > innerWidth + 1;
      }).slice(0, 5).map(function (e) { return e.tagName + "." + e.getAttribute("class"); });
    },
    controls: function () {
      return Array.from(document.querySelectorAll("a[href], input, summary, [tabindex='0']")).filter(function (e) {
        return seen(e) && (e.type !== "radio" || e.checked);
      });
    },
    mark: function () {
      window.checks.controls().forEach(function (e, n) { e.dataset.control = n; });
      return window.checks.controls().length;
    },
    focused: function () {
      var e = document.activeElement, shown = e.type === "radio" ? e.parentElement : e, style = getComputedStyle(shown);
      var box = shown.getBoundingClientRect();
      return {
        control: e.dataset.control === undefined ? null : +e.dataset.control,
        visible: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
        inView: box.bottom > 0 && box.top < innerHeight,
        name: e.tagName + " " + (e.getAttribute("aria-label") || e.textContent.trim().slice(0, 30))
      };
    }
  };
})();
