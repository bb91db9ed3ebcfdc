
// The map of the report: every event drawn on one canvas, with pan, zoom, filters and attributes. Without it (scripts
// off, an old browser) the page shows its static map. Text enters the page by textContent only.
(async () => {
  const page = document.documentElement, get = (id) => document.getElementById(id), canvas = get("map");
  if (!canvas || typeof DecompressionStream === "undefined") return;

  // ---------------------------------------------------------------- data
  const config = JSON.parse(get("map-config").textContent);
  const [west, south, east, north] = config.bounds.map((value) => value * 1e6);
  const cosine = Math.max(Math.cos(((south + north) / 2e6) * Math.PI / 180), 0.05);
  const data = await unpack("map-events");
  const placeX = integers(data.x, true, true), placeY = integers(data.y, true, true);
  const shapes = outlines(await unpack("map-outlines"), placeX, placeY), n = shapes.n;
  const units = outlines(await unpack("map-units")), blocks = outlines(await unpack("map-blocks"));
  const category = data.category, year = integers(data.year), confidence = integers(data.confidence);
  const area = integers(data.area), clear = integers(data.clear), unit = integers(data.unit);
  const firstDay = integers(data.first, true, true), span = integers(data.span), images = integers(data.images);
  const ids = data.ids ? new TextDecoder().decode(data.ids).split("\n") : null;
  const square = new Uint8Array(n);
  for (let e = 0; e < n; e++) {
    const a = shapes.start[shapes.first[e]];
    square[e] = shapes.start[shapes.first[e + 1]] - a === 1 ? 1 : 0;
    if (!square[e]) continue;
    const half = Math.sqrt(area[e] * 10) / 2 / METRES, x = shapes.x[a], y = shapes.y[a];
    shapes.box.set([x - half / cosine, y - half, x + half / cosine, y + half], 4 * e);
  }
  const chunks = chunksOf(shapes.box);

  // ---------------------------------------------------------------- text
  function eventId(e) {
    if (ids) return ids[e];
    const x = placeX[e] > 180e6 ? placeX[e] - 360e6 : placeX[e], y = placeY[e];
    return `${config.first_year + year[e]}_${y < 0 ? "S" : "N"}${placeText(y, 9)}_${x < 0 ? "W" : "E"}${placeText(x, 10)}`;
  }

  function facts(e) {
    const kind = config.categories[category[e]] ?? { status: "unknown", driver: "" };
    const rows = [["Event", eventId(e)], ["Driver", kind.driver || "not known"], ["Status", kind.status]];
    if (confidence[e]) rows.push(["Confidence", `${((confidence[e] - 1) / 10).toFixed(1)} %`]);
    rows.push(["Mapped area", `${figure(area[e] / 1000, 2)} ha`], ["Loss year", String(config.first_year + year[e])]);
    if (unit[e]) rows.push(["Unit", config.units[unit[e] - 1].name]);
    const dates = firstDay[e] ? `, ${dayText(firstDay[e])} to ${dayText(firstDay[e] + span[e])}` : "";
    rows.push(["Images", `${images[e]}${dates}`]);
    if (clear[e]) rows.push(["Seen clear", `${clear[e] - 1} % of its pixels`]);
    const [x, y] = middle(e);
    rows.push(["Place", `${degrees(x).toFixed(5)}, ${(y / 1e6).toFixed(5)} (lon, lat)`]);
    return rows;
  }

  const middle = (e) => [0, 1].map((k) => (shapes.box[4 * e + k] + shapes.box[4 * e + k + 2]) / 2);

  // ---------------------------------------------------------------- view
  const context = canvas.getContext("2d"), base = document.createElement("canvas");
  const dots = document.createElement("canvas"), paint = base.getContext("2d"), dotPaint = dots.getContext("2d");
  const view = { x: (west + east) / 2, y: (south + north) / 2, k: 0 }; // k: pixels of the canvas to a millionth north
  const drawn = { ...view };
  let width = 0, height = 0, ratio = 1, pixels = null, selected = -1, cost = 0, timer = 0, asked = false, fitted = 0;
  const passes = new Uint8Array(n), visible = new Uint32Array(n);
  const toX = (x) => width / 2 + (x - view.x) * view.k * cosine, toY = (y) => height / 2 - (y - view.y) * view.k;
  const toLon = (px) => view.x + (px - width / 2) / view.k / cosine, toLat = (py) => view.y - (py - height / 2) / view.k;
  const fit = (box, most) => {
    view.x = (box[0] + box[2]) / 2; view.y = (box[1] + box[3]) / 2;
    view.k = Math.min(width / Math.max((box[2] - box[0]) * cosine, 1), height / Math.max(box[3] - box[1], 1), most);
  };
  const nearest = () => ratio * METRES / 0.4; // 0.4 metres to a pixel
  const home = () => { fit([west, south, east, north], nearest()); fitted = view.k; };

  function resize() {
    const box = canvas.getBoundingClientRect();
    const sharp = window.devicePixelRatio || 1, size = [box.width, box.height].map((length) => Math.round(length * sharp));
    if (!box.width || (size[0] === width && size[1] === height)) return;
    const old = ratio;
    ratio = sharp; [width, height] = size;
    for (const surface of [canvas, base, dots]) { surface.width = width; surface.height = height; }
    pixels = dotPaint.createImageData(width, height);
    const before = view.k ? { ...view } : null, zoomed = before && Math.abs(before.k / fitted - 1) > 1e-6;
    home();
    if (zoomed) Object.assign(view, before, { k: before.k * ratio / old });
    if (page.dataset.map) draw();
  }

  function move(dx, dy) { view.x -= dx / view.k / cosine; view.y += dy / view.k; ask(); }

  function zoom(factor, px = width / 2, py = height / 2) {
    const x = toLon(px), y = toLat(py);
    view.k = Math.min(Math.max(view.k * factor, fitted / 4), nearest());
    view.x = x - (px - width / 2) / view.k / cosine; view.y = y + (py - height / 2) / view.k;
    ask();
  }

  // Large maps take long to draw: while the view moves, the last picture moves with it.
  function ask() {
    view.x = Math.min(Math.max(view.x, west), east); view.y = Math.min(Math.max(view.y, south), north);
    clearTimeout(timer);
    if (cost > 60) timer = setTimeout(draw, 180);
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; if (cost > 60) show(); else draw(); });
  }

  function show() {
    const s = view.k / drawn.k;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, width, height);
    context.setTransform(s, 0, 0, s, width / 2 * (1 - s) + (drawn.x - view.x) * view.k * cosine,
      height / 2 * (1 - s) - (drawn.y - view.y) * view.k);
    context.drawImage(base, 0, 0);
    scaleBar();
  }

  // ---------------------------------------------------------------- drawing
  const rgb = (colour) => [1, 3, 5].map((k) => parseInt(colour.slice(k, k + 2), 16));
  const word = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  const fills = config.categories.map(({ colour, hatched }) => hatched ? hatch(colour) : colour);
  const words = config.categories.map(({ colour, hatched }) =>
    word(rgb(colour).map((part) => hatched ? Math.round((part + 255) / 2) : part)));
  fills.push("#000000"); words.push(word([0, 0, 0]));

  function hatch(colour) {
    const tile = document.createElement("canvas"), brush = tile.getContext("2d");
    tile.width = tile.height = 8;
    brush.fillStyle = "#ffffff"; brush.fillRect(0, 0, 8, 8);
    brush.fillStyle = colour;
    for (let y = 0; y < 8; y++) for (let x = 0; x < 8; x++) if ((x + y) % 8 < 4) brush.fillRect(x, y, 1, 1);
    return context.createPattern(tile, "repeat");
  }

  function trace(brush, set, row) {
    for (let r = set.first[row]; r < set.first[row + 1]; r++) {
      const a = set.start[r], b = set.start[r + 1];
      for (let k = a; k < b; k++) {
        if (k === a) brush.moveTo(toX(set.x[k]), toY(set.y[k])); else brush.lineTo(toX(set.x[k]), toY(set.y[k]));
      }
      brush.closePath();
    }
  }

  function traceEvent(brush, e, least = 0) {
    const box = shapes.box, w = (box[4 * e + 2] - box[4 * e]) * view.k * cosine, h = (box[4 * e + 3] - box[4 * e + 1]) * view.k;
    if (!square[e] && (w >= least || h >= least)) return trace(brush, shapes, e);
    const [x, y] = middle(e), sw = Math.max(w, least), sh = Math.max(h, least);
    brush.rect(toX(x) - sw / 2, toY(y) - sh / 2, sw, sh);
  }

  function inView(left, bottom, right, top) {
    let count = 0;
    for (let c = 0; 4 * c < chunks.length; c++) {
      if (chunks[4 * c] > right || chunks[4 * c + 2] < left || chunks[4 * c + 1] > top || chunks[4 * c + 3] < bottom) continue;
      for (let e = c * CHUNK, end = Math.min(n, e + CHUNK); e < end; e++) {
        const at = 4 * e, box = shapes.box;
        if (passes[e] && box[at] <= right && box[at + 2] >= left && box[at + 1] <= top && box[at + 3] >= bottom) visible[count++] = e;
      }
    }
    return count;
  }

  function drawEvents() {
    const margin = 8 * ratio, count = inView(toLon(-margin), toLat(height + margin), toLon(width + margin), toLat(-margin));
    // the smallest mark: as large as leaves most of the map free, within 1 and 5 pixels
    const least = Math.round(Math.min(Math.max(Math.sqrt(0.012 * width * height / (count || 1)), 1), 5 * ratio));
    const many = count > 4000, buffer = new Uint32Array(pixels.data.buffer), large = [];
    if (many) buffer.fill(0);
    for (let i = 0; i < count; i++) {
      const e = visible[i], at = 4 * e, box = shapes.box;
      const w = (box[at + 2] - box[at]) * view.k * cosine, h = (box[at + 3] - box[at + 1]) * view.k;
      if (!many || w > least + 1 || h > least + 1) { large.push(e); continue; }
      const x = Math.round(toX((box[at] + box[at + 2]) / 2) - least / 2), y = Math.round(toY((box[at + 1] + box[at + 3]) / 2) - least / 2);
      for (let py = Math.max(y, 0); py < Math.min(y + least, height); py++)
        for (let px = Math.max(x, 0); px < Math.min(x + least, width); px++) buffer[py * width + px] = words[category[e]];
    }
    if (many) { dotPaint.putImageData(pixels, 0, 0); paint.drawImage(dots, 0, 0); }
    paint.strokeStyle = "rgba(20, 30, 24, 0.55)"; paint.lineWidth = (many ? 0.5 : 0.8) * ratio;
    for (const e of large) {
      const at = 4 * e, wide = (shapes.box[at + 2] - shapes.box[at]) * view.k * cosine;
      paint.fillStyle = fills[category[e]];
      paint.beginPath(); traceEvent(paint, e, least); paint.fill("evenodd");
      if (wide > (many ? 14 : 4) * ratio) paint.stroke();
    }
    page.dataset.drawnEvents = String(count);
  }

  function drawNames() {
    const size = 13 * ratio, taken = [];
    paint.font = `${size}px system-ui, "Segoe UI", "Noto Sans", sans-serif`;
    paint.textAlign = "center"; paint.textBaseline = "middle"; paint.lineJoin = "round";
    for (const { name, x, y } of config.units.length > 1 ? config.units : []) { // the page lists units by their loss: the first come first
      if (x === null) continue;
      const px = toX(x), py = toY(y), half = paint.measureText(name).width / 2 + 4 * ratio;
      if (px < 0 || py < 0 || px > width || py > height) continue;
      if (taken.some((box) => Math.abs(px - box[0]) < half + box[2] && Math.abs(py - box[1]) < size * 1.3)) continue;
      taken.push([px, py, half]);
      paint.lineWidth = 4 * ratio; paint.strokeStyle = "rgba(255, 255, 255, 0.9)"; paint.strokeText(name, px, py);
      paint.fillStyle = "#1d2a22"; paint.fillText(name, px, py);
      if (taken.length >= 60) break;
    }
  }

  function draw() {
    clearTimeout(timer);
    if (!width) return;
    const start = performance.now();
    Object.assign(drawn, view);
    paint.setTransform(1, 0, 0, 1, 0, 0);
    paint.fillStyle = "#ffffff"; paint.fillRect(0, 0, width, height);
    paint.beginPath();
    for (let u = 0; u < units.n; u++) trace(paint, units, u);
    paint.fillStyle = "#f4f5f0"; paint.fill("evenodd");
    drawEvents();
    paint.beginPath();
    for (let u = 0; u < units.n; u++) trace(paint, units, u);
    paint.strokeStyle = "#3b4a41"; paint.lineWidth = 1.3 * ratio; paint.lineJoin = "round"; paint.stroke();
    paint.beginPath();
    for (let b = 0; b < blocks.n; b++) trace(paint, blocks, b);
    paint.strokeStyle = "#b2182b"; paint.lineWidth = 1.6 * ratio;
    paint.setLineDash([7 * ratio, 5 * ratio]); paint.stroke(); paint.setLineDash([]);
    drawNames();
    if (selected >= 0) {
      for (const [colour, line] of [["#ffffff", 5], ["#000000", 2.2]]) {
        paint.beginPath(); traceEvent(paint, selected, 10 * ratio);
        paint.strokeStyle = colour; paint.lineWidth = line * ratio; paint.stroke();
      }
    }
    show();
    cost = performance.now() - start;
    page.dataset.draws = String(Number(page.dataset.draws ?? 0) + 1);
    page.dataset.cost = cost.toFixed(0);
  }

  function scaleBar() {
    const across = 120 * ratio / view.k * METRES, power = 10 ** Math.floor(Math.log10(across));
    const metres = [5, 2, 1].find((k) => k * power <= across) * power;
    get("map-scale").style.width = `${metres / METRES * view.k / ratio}px`;
    get("map-scale").textContent = metres < 1000 ? `${metres} m` : `${metres / 1000} km`;
  }

  // ---------------------------------------------------------------- reading events
  // The event at a place of the canvas: the smallest that holds it, else the nearest box within `reach` pixels.
  function find(px, py, reach) {
    const x = toLon(px), y = toLat(py), dx = reach / view.k / cosine, dy = reach / view.k;
    const count = inView(x - dx, y - dy, x + dx, y + dy);
    let best = -1, least = Infinity;
    for (let i = 0; i < count; i++) {
      const e = visible[i], [l, b, r, t] = shapes.box.subarray(4 * e, 4 * e + 4);
      const away = Math.hypot(Math.max(l - x, 0, x - r) * cosine, Math.max(b - y, 0, y - t));
      const holds = away === 0 && (square[e] || inside(shapes, e, x, y));
      const rank = holds ? -1 / (1 + area[e]) : 1 + away + area[e] * 1e-9;
      if (rank < least) { least = rank; best = e; }
    }
    return best;
  }

  function select(e) {
    selected = e;
    const list = get("map-facts");
    list.replaceChildren();
    for (const [name, value] of e < 0 ? [] : facts(e)) {
      const term = document.createElement("dt"), text = document.createElement("dd"), bidi = document.createElement("bdi");
      term.textContent = name; bidi.textContent = value; text.append(bidi); list.append(term, text);
    }
    get("map-event").hidden = e < 0;
    draw();
  }

  function visit(e) {
    const at = shapes.box.subarray(4 * e, 4 * e + 4), margin = Math.max(at[2] - at[0], at[3] - at[1], 9000) * 1.5;
    fit([at[0] - margin, at[1] - margin, at[2] + margin, at[3] + margin], nearest());
    select(e);
  }

  function filter() {
    const on = (name) => new Set([...document.querySelectorAll(`input[data-${name}]:checked`)].map((box) => box.dataset[name]));
    const drivers = on("driver"), statuses = on("status");
    const shown = config.categories.map((kind) => statuses.has(kind.status_key) && (!kind.driver_key || drivers.has(kind.driver_key)));
    shown.push(true);
    const from = Number(get("map-from")?.value ?? 0), to = Number(get("map-to")?.value ?? 9999);
    const least = Number(get("map-least").value) * 10;
    let count = 0, sum = 0;
    for (let e = 0; e < n; e++) {
      const own = config.first_year + year[e];
      passes[e] = shown[category[e]] && own >= from && own <= to && (least <= 0 || confidence[e] - 1 >= least) ? 1 : 0;
      if (passes[e]) { count++; sum += area[e]; }
    }
    get("map-least-text").textContent = `${least / 10} %`;
    get("map-count").textContent = `${figure(count, 0)} of ${figure(n, 0)} events, ${figure(sum / 1000, 1)} ha mapped`;
    if (selected >= 0 && !passes[selected]) select(-1); else draw();
  }

  // ---------------------------------------------------------------- hands
  const pointers = new Map();
  let travelled = 0, hovering = 0;
  const spot = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
  };

  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0016)), ...spot(event));
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => zoom(2, ...spot(event)));
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, spot(event));
    if (pointers.size === 1) travelled = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = spot(event), before = pointers.get(event.pointerId);
    if (!before) {
      cancelAnimationFrame(hovering);
      hovering = requestAnimationFrame(() => hover(now));
      return;
    }
    const other = [...pointers].find(([key]) => key !== event.pointerId)?.[1];
    pointers.set(event.pointerId, now);
    travelled += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (!other) return move(now[0] - before[0], now[1] - before[1]);
    const length = (a) => Math.max(Math.hypot(a[0] - other[0], a[1] - other[1]), 1);
    move((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
    zoom(length(now) / length(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    travelled += 10 * ratio;
  });
  canvas.addEventListener("pointerup", (event) => {
    pointers.delete(event.pointerId);
    if (!pointers.size && travelled < 5 * ratio) select(find(...spot(event), 7 * ratio));
  });
  canvas.addEventListener("pointercancel", (event) => pointers.delete(event.pointerId));
  canvas.addEventListener("pointerleave", () => { get("map-tip").hidden = true; });
  canvas.addEventListener("keydown", (event) => {
    const far = 60 * ratio, keys = {
      ArrowLeft: () => move(far, 0), ArrowRight: () => move(-far, 0), ArrowUp: () => move(0, far), ArrowDown: () => move(0, -far),
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: () => { home(); ask(); },
      Enter: () => select(find(width / 2, height / 2, Math.max(width, height) / 2)), Escape: () => select(-1),
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });

  function hover([px, py]) {
    const e = find(px, py, 4 * ratio), tip = get("map-tip");
    get("map-place").textContent = `${degrees(toLon(px)).toFixed(4)}, ${(toLat(py) / 1e6).toFixed(4)}`;
    canvas.style.cursor = e < 0 ? "grab" : "pointer";
    tip.hidden = e < 0;
    if (e < 0) return;
    tip.textContent = facts(e).slice(1).filter(([name]) => !["Place", "Seen clear", "Images"].includes(name)).map((row) => row[1]).join(" · ");
    const room = width / ratio - 230;
    tip.style.left = `${Math.min(px / ratio + 14, Math.max(room, 0))}px`; tip.style.top = `${py / ratio + 16}px`;
  }

  get("map-close").addEventListener("click", () => { select(-1); canvas.focus(); });
  get("map-in").addEventListener("click", () => zoom(1.6));
  get("map-out").addEventListener("click", () => zoom(1 / 1.6));
  get("map-home").addEventListener("click", () => { home(); ask(); });
  for (const input of document.querySelectorAll("#map-controls input[type=checkbox], #map-controls select, #map-least"))
    input.addEventListener("input", filter);
  get("map-find").addEventListener("submit", (event) => {
    event.preventDefault();
    const wanted = get("map-id").value.trim();
    let e = 0;
    while (e < n && eventId(e) !== wanted) e++;
    get("map-found").textContent = e < n ? "" : "No event of this id on the map.";
    if (e < n) visit(e);
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-event], button[data-unit]");
    if (!button) return;
    get("map").scrollIntoView({ block: "center" });
    if (button.dataset.unit) {
      fit(units.box.subarray(4 * button.dataset.unit, 4 * button.dataset.unit + 4), nearest());
      view.k *= 0.92;
      return draw();
    }
    get("map-id").value = button.dataset.event;
    get("map-find").requestSubmit();
  });

  page.classList.add("live");
  resize();
  new ResizeObserver(resize).observe(canvas);
  filter();
  page.dataset.map = "ready";
})();
