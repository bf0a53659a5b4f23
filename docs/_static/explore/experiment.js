/* What the page shows, without its pictures: point sets, a run step by step, and its errors. */
"use strict";

if (typeof module !== "undefined") globalThis.thinformer = require("./thinformer.js");

const experiment = (() => {
  const LIMIT = 3; // the picture shows [-3, 3] in each direction
  const CHOICE = 1; // the head whose draws choose points at random

  /* What the page starts with; the numbers of random choices of points and of draws are seeds. */
  const SETTINGS = {
    set: "normal", order: "random", n: 64, keep: 32, delta: 0.5, seed: 0, bandwidth: 0.7, points: 1,
  };
  const SEEDS = Array.from({ length: 40 }, (_, i) => i + 1000); // of the comparison

  const rounded = (x) => Math.round(1000 * Math.max(-2.9, Math.min(2.9, x))) / 1000;

  /* Pairs of independent standard normal numbers, by Box and Muller. */
  function normals(key, n) {
    const [u, v] = [1, 2].map((stream) => thinformer.unit_numbers(key, stream, n));
    return u.map((x, i) => {
      const [radius, angle] = [Math.sqrt(-2 * Math.log(1 - x)), 2 * Math.PI * v[i]];
      return [radius * Math.cos(angle), radius * Math.sin(angle)];
    });
  }

  /* Positions 0 .. n-1 in random order. */
  function shuffled(key, n) {
    const numbers = thinformer.unit_numbers(key, 3, n);
    return numbers.map((_, i) => i).sort((i, j) => numbers[i] - numbers[j]);
  }

  const line = (normal) => normal.map(([x]) => [x]);

  /* Each set is a function of the key of its random numbers and of n. */
  const SETS = {
    "line-normal": (key, n) => line(normals(key, n)),
    "line-mixture": (key, n) =>
      line(normals(key, n)).map(([x], i) => [i % 3 ? 1.4 + 0.45 * x : -1.5 + 0.35 * x]),
    "line-even": (key, n) => shuffled(key, n).map((i) => [(5.4 * (i + 0.5)) / n - 2.7]),
    normal: normals,
    mixture: (key, n) => normals(key, n).map(([x, y], i) => {
      const angle = (2 * Math.PI * (i % 3)) / 3 + 0.5;
      return [1.6 * Math.cos(angle) + 0.4 * x, 1.6 * Math.sin(angle) + 0.4 * y];
    }),
    ring: (key, n) => {
      const angles = thinformer.unit_numbers(key, 3, n).map((u) => 2 * Math.PI * u);
      return normals(key, n).map(([x], i) =>
        [(2 + 0.15 * x) * Math.cos(angles[i]), (2 + 0.15 * x) * Math.sin(angles[i])]);
    },
    grid: (key, n) => {
      const columns = 2 ** Math.ceil(Math.log2(n) / 2);
      const step = 5 / columns;
      const rows = n / columns;
      return shuffled(key, n).map((i) => [
        ((i % columns) + 0.5) * step - 2.5,
        (Math.floor(i / columns) + 0.5) * step - (rows * step) / 2,
      ]);
    },
    segment: (key, n) => shuffled(key, n).map((i) => {
      const t = (5 * (i + 0.5)) / n - 2.5;
      return [t, 0.6 * t];
    }),
  };

  /* n points of a set, in random order or sorted by their first coordinate. */
  function pointSet(name, n, seed, sorted) {
    const points = SETS[name](thinformer.head_key(seed), n).map((x) => x.map(rounded));
    return sorted ? points.sort((x, y) => x[0] - y[0] || x[1] - y[1]) : points;
  }

  /* MMD between all points and points of given weights, whose sum is n. */
  function mmd(K, weights) {
    const n = K.length;
    let squared = 0;
    for (let p = 0; p < n; p++) {
      for (let q = 0; q < n; q++) squared += (weights[p] - 1) * (weights[q] - 1) * K[p][q];
    }
    return Math.sqrt(Math.max(squared, 0)) / n;
  }

  /* The MMD while weights change one by one: O(n) a change. */
  class Discrepancy {
    constructor(K) {
      this.K = K;
      this.squared = 0;
      this.sums = new Float64Array(K.length); // sum_q (w_q - 1) K[p][q]
      this.weights = new Float64Array(K.length).fill(1);
    }

    change(p, weight) {
      const by = weight - this.weights[p];
      this.squared += by * (2 * this.sums[p] + by * this.K[p][p]);
      for (let q = 0; q < this.sums.length; q++) this.sums[q] += by * this.K[p][q];
      this.weights[p] = weight;
    }

    get value() {
      return Math.sqrt(Math.max(this.squared, 0)) / this.weights.length;
    }
  }

  /* The Gram matrix; rows of points that did not move are taken from the matrix of another run. */
  function gramOf(points, k, other) {
    const still = (p) => other !== null && other.points[p] === points[p];
    const K = points.map((_, p) => (still(p) ? other.K[p].slice() : new Float64Array(points.length)));
    for (let p = 0; p < points.length; p++) {
      for (let q = 0; q <= p; q++) {
        if (!still(p) || !still(q)) K[p][q] = K[q][p] = k(points[p], points[q]);
      }
    }
    return K;
  }

  const submatrix = (K) => (bucket) => bucket.map((p) => bucket.map((q) => K[p][q]));

  function halvings(K, { size, delta, seed }) {
    const schedule = thinformer.compress_schedule(K.length, size, delta);
    const { uniforms, coins } = thinformer.make_draws(schedule, seed);
    return { schedule,
      steps: thinformer.kh_compress(submatrix(K), K.length, schedule.rounds, uniforms, coins) };
  }

  /* The order in which points leave a random subset. */
  const leaving = (n, seed) => shuffled(thinformer.head_key(seed, CHOICE), n);

  /* Weights of the points after each step, changed in place: the kept point of a pair stands for
     both; the coin of a bucket may exchange kept and dropped points. */
  function follow(step, change) {
    const double = 2 ** (step.round + 1);
    if (step.kind === "pair") {
      const [first, second] = [step.points[2 * step.i], step.points[2 * step.i + 1]];
      change(first, step.swap ? 0 : double);
      change(second, step.swap ? double : 0);
    } else if (step.coin) {
      const half = new Set(step.half);
      for (const p of step.points) change(p, half.has(p) ? double : 0);
    }
  }

  /* A run with all that the page shows of it. `states[t]` belongs to the first t steps:

       left     number of points that are not dropped
       thinned  MMD of the points that are left, each with the weight of those it stands for
       random   MMD of as many points, drawn at random

     `other` is a run of as many points, most of them the same. */
  function run({ points, bandwidth, delta, size, seed }, other = null) {
    const reusable = other?.bandwidth === bandwidth && other.points.length === points.length;
    const K = gramOf(points, thinformer.kernels.gaussian(bandwidth), reusable ? other : null);
    const n = points.length;
    const { schedule, steps } = halvings(K, { size, delta, seed });
    const [thinned, random] = [new Discrepancy(K), new Discrepancy(K)];
    const order = leaving(n, seed);
    const all = mmdOfSubsets(K, order, size);
    const states = [{ left: n, thinned: 0, random: 0 }];
    const done = [];
    for (const step of steps) {
      done.push({ ...step, first: step.i === 0 ? done.length : done.at(-1)?.first });
      follow(step, (p, weight) => thinned.change(p, weight));
      const left = states.at(-1).left - (step.kind === "pair" ? 1 : 0);
      states.push({ left, thinned: thinned.value, random: all[left] });
    }
    const kept = [...thinned.weights.keys()].filter((p) => thinned.weights[p] > 0);
    return { points, bandwidth, delta, size, seed, K, schedule, steps: done, states, kept, order };
  }

  /* all[m] is the MMD of the last m points of an order, for m from n down to size. */
  function mmdOfSubsets(K, order, size) {
    const n = K.length;
    const ofAll = K.map((row) => row.reduce((sum, x) => sum + x, 0)); // sums over all points
    const ofSubset = ofAll.slice(); // and over the points that are left
    const total = ofAll.reduce((sum, x) => sum + x, 0);
    let [inside, across] = [total, total];
    const all = [];
    for (let m = n; m >= size; m--) {
      all[m] = Math.sqrt(Math.max(inside / m ** 2 - (2 * across) / (m * n) + total / n ** 2, 0));
      const p = order[n - m];
      inside -= 2 * ofSubset[p] - K[p][p];
      across -= ofAll[p];
      for (let q = 0; q < n; q++) ofSubset[q] -= K[p][q];
    }
    return all;
  }

  /* The last MMD of both for each of some seeds, with the same points. */
  function overSeeds({ K, delta, size }, seeds) {
    const n = K.length;
    const of = (rows) => {
      const weights = new Float64Array(n);
      for (const p of rows) weights[p] = n / rows.length;
      return mmd(K, weights);
    };
    return seeds.map((seed) => ({
      thinned: of(thinformer.result(halvings(K, { size, delta, seed }).steps)),
      random: of(leaving(n, seed).slice(n - size)),
    }));
  }

  /* Weights after t steps: 0 where a point is dropped, else the number of points it stands for. */
  function weightsAt({ points, steps }, t) {
    const weights = new Float64Array(points.length).fill(1);
    for (const step of steps.slice(0, t)) follow(step, (p, weight) => (weights[p] = weight));
    return weights;
  }

  /* The walk psi of the bucket of step t - 1, before or after that step: coefficients by point. */
  function walkAt({ steps }, t, before) {
    const walk = new Map();
    if (t === 0) return walk;
    const last = steps[t - 1];
    for (const step of steps.slice(last.first, before ? t - 1 : t)) {
      if (step.kind === "pair") {
        walk.set(step.points[2 * step.i], step.eta);
        walk.set(step.points[2 * step.i + 1], -step.eta);
      } else if (step.coin) {
        for (const [p, sign] of walk) walk.set(p, -sign);
      }
    }
    return walk;
  }

  /* A program that finds the same rows with the package. */
  function program({ points, bandwidth, delta, size, seed, kept }) {
    const rows = points.map((x) => `    [${x.join(", ")}],`).join("\n");
    return `import numpy as np
from thinformer import kh_compress
from thinformer.halving.draws import make_draws
from thinformer.halving.schedule import compress_schedule
from thinformer.kernels import gaussian

points = np.array([
${rows}
], dtype=np.float64)
draws = make_draws(compress_schedule(${points.length}, ${size}, ${delta}), ${seed})
rows = kh_compress(points, size=${size}, delta=${delta}, kernel=gaussian(${bandwidth}), draws=draws)
print(rows.tolist() == [${kept.join(", ")}])
`;
  }

  return { LIMIT, SETTINGS, SEEDS, SETS, pointSet, mmd, run, overSeeds, weightsAt, walkAt, program };
})();

if (typeof module !== "undefined") module.exports = experiment;
