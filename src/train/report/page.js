// values of the lines under the pointer
for (const plot of document.querySelectorAll(".plot")) {
  const { low, high, lines } = JSON.parse(plot.querySelector("script").textContent);
  const cursor = plot.querySelector(".cursor"), tip = plot.querySelector(".tip");
  const nearest = (points, step) => {
    let a = 0, b = points.length - 1;
    while (b - a > 1) {
      const middle = (a + b) >> 1;
      if (points[middle][0] <= step) a = middle; else b = middle;
    }
    return step - points[a][0] <= points[b][0] - step ? points[a] : points[b];
  };
  const show = (event) => {
    const box = plot.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const step = nearest(lines[0].points, low + share * (high - low))[0];
    const at = (step - low) / (high - low) * 100;
    tip.replaceChildren(`step ${step}`);
    for (const line of lines) {
      const [there, value] = nearest(line.points, step);
      const row = document.createElement("div"), name = document.createElement("b");
      name.className = line.class;
      name.textContent = line.label + (there === step ? " " : ` (step ${there}) `);
      row.append(name, value);
      tip.append(row);
    }
    cursor.hidden = tip.hidden = false;
    cursor.style.left = `${at}%`;
    // beside the line where there is room, and never over the edge of the chart
    const line = at / 100 * box.width, width = tip.offsetWidth;
    const left = at < 50 ? line + 10 : line - 10 - width;
    tip.style.left = `${Math.max(0, Math.min(left, box.width - width))}px`;
  };
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerdown", show);
  plot.addEventListener("pointerleave", () => { cursor.hidden = tip.hidden = true; });
}
