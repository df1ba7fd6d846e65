// Where states are drawn: the maze from above or two principal components (a map), or dimensions over time.

import { extent, linear } from "./scale.js";

// state -> [x, y] on the map.
export function projection(view) {
  if (view.kind === "maze") {
    const [x, y] = view.dims;
    return (state) => [state[x], state[y]];
  }
  const { mean, std, axes } = view;
  const scaled = axes.map((axis) => axis.map((weight, index) => weight / (std[index] || 1)));
  return (state) =>
    scaled.map((axis) => axis.reduce((sum, weight, index) => sum + weight * (state[index] - mean[index]), 0));
}

export function dimensionName(view, dimension) {
  if (view.kind === "maze" && dimension === view.dims[0]) return "x";
  if (view.kind === "maze" && dimension === view.dims[1]) return "y";
  return `dim ${dimension}`;
}

// [[x0, x1], [y0, y1]] of points, a little wider.
export function boundsOf(points, margin) {
  const [xs, ys] = [0, 1].map((axis) => extent(points.map((point) => point[axis])));
  const pad = Math.max(xs[1] - xs[0], ys[1] - ys[0]) * margin || (margin ? 0.5 : 0);
  return [
    [xs[0] - pad, xs[1] + pad],
    [ys[0] - pad, ys[1] + pad],
  ];
}

// The bounds include only the inner half of the outer walls, because the way between the walls matters.
export function wallBounds(walls) {
  const [xs, ys] = boundsOf(
    walls.flatMap(([x, y, width, height]) => [
      [x, y],
      [x + width, y + height],
    ]),
    0,
  );
  const crop = Math.min(...walls.map(([, , width, height]) => Math.min(width, height))) * 0.55;
  return [
    [xs[0] + crop, xs[1] - crop],
    [ys[0] + crop, ys[1] - crop],
  ];
}

// Scales of equal unit that show `bounds` within [0, width] x [0, height], y upwards.
export function fit([xs, ys], width, height, pad = 0) {
  const unit = Math.min((width - 2 * pad) / (xs[1] - xs[0] || 1), (height - 2 * pad) / (ys[1] - ys[0] || 1));
  const centre = [(xs[0] + xs[1]) / 2, (ys[0] + ys[1]) / 2];
  return {
    unit,
    x: (value) => width / 2 + (value - centre[0]) * unit,
    y: (value) => height / 2 - (value - centre[1]) * unit,
  };
}

// A small "x,y x,y .." of a trajectory; walls, if there are any, give the frame.
export function thumbnail(view, observations, width, height) {
  const project = projection(view);
  const stride = Math.ceil(observations.length / 80);
  const points = observations
    .filter((_, index) => index % stride === 0 || index === observations.length - 1)
    .map(project);
  if (view.kind === "maze") {
    const frame = fit(wallBounds(view.walls), width, height);
    return points.map(([x, y]) => [frame.x(x), frame.y(y)]);
  }
  const [xs, ys] = boundsOf(points, 0);
  const [x, y] = [linear(xs, [3, width - 3]), linear(ys, [height - 3, 3])];
  return points.map((point) => [x(point[0]), y(point[1])]);
}
