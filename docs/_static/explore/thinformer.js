/* Kernel halving and KH-Compress in JavaScript: one more body of thinformer.

   With the same draws it keeps the same points as the package. Names are those of reference/, where
   the same algorithms are written in NumPy; tests/house/test_explore.py compares the choices.
   Numbers are doubles. It is a plain script, so that a page can load it from a folder, and a module
   of node: require("./thinformer.js"). */
"use strict";

const thinformer = (() => {
  // ---- Draws: a pure function of (seed, head, round, position) --------------------------------

  // SplitMix64 (Steele, Lea & Flood, 2014), on integers of 64 bits
  const GOLDEN = 0x9e3779b97f4a7c15n;
  const MIX_1 = 0xbf58476d1ce4e5b9n;
  const MIX_2 = 0x94d049bb133111ebn;
  const wrap = (word) => BigInt.asUintN(64, word);

  /* SplitMix64's finaliser: every bit of the result depends on every bit of the word. */
  function mix(word) {
    word = wrap((word ^ (word >> 30n)) * MIX_1);
    word = wrap((word ^ (word >> 27n)) * MIX_2);
    return word ^ (word >> 31n);
  }

  /* The top 53 bits of a word as a number in [0, 1). */
  const unit = (word) => Number(word >> 11n) * 2 ** -53;

  /* The key of a head's streams. */
  const head_key = (seed, head = 0) => mix(wrap(mix(BigInt(seed)) + BigInt(head)));

  /* `size` numbers in [0, 1) of a numbered stream. */
  function unit_numbers(key, stream, size) {
    const start = mix(wrap(key + BigInt(stream)));
    const numbers = new Array(size);
    for (let i = 0; i < size; i++) {
      numbers[i] = unit(mix(wrap(start + BigInt(i + 1) * GOLDEN)));
    }
    return numbers;
  }

  /* All random numbers of a schedule: a uniform in [-1, 1) for each pair, a coin for each bucket,
     and numbers in [0, 1) for the thinning before the first round. */
  function make_draws(schedule, seed, head = 0) {
    const key = head_key(seed, head);
    return {
      uniforms: schedule.rounds.map(({ pairs }, i) =>
        unit_numbers(key, 2 * i + 1, pairs).map((u) => 2 * u - 1)),
      coins: schedule.rounds.map(({ buckets }, i) =>
        unit_numbers(key, 2 * i + 2, buckets).map((u) => u >= 0.5)),
      strata: unit_numbers(key, 0, schedule.length + 1),
    };
  }

  // ---- Schedule: what will be halved, a pure function of (n, size, delta) ---------------------

  const floor_log2 = (n) => 31 - Math.clz32(n);

  /* The largest power of four not above n. */
  const published_length = (n) => 4 ** Math.floor(floor_log2(n) / 2);

  /* KH-Compress(g) keeps 2^g sqrt(n) points, for n a power of four. */
  const coreset_size = (n, g) => Math.min(n, 2 ** (g + Math.floor(floor_log2(n) / 2)));

  /* From at most n points to `size` of them. Round i cuts its points into 4^(r-1-i) buckets, so
     bucket lengths double from round to round, and the last round is one bucket. */
  function compress_schedule(n, size, delta = 0.5) {
    const halvings = floor_log2(Math.floor(n / size));
    const rounds = [];
    for (let i = 0; i < halvings; i++) {
      const pairs = size * 2 ** (halvings - 1 - i);
      const buckets = Math.min(4 ** (halvings - 1 - i), Math.max(1, Math.floor(pairs / 2)));
      rounds.push({ pairs, buckets, delta: delta / (halvings * buckets) });
    }
    return { length: size * 2 ** halvings, size, rounds };
  }

  /* The schedule of a compression of n points to `size` of them or, without `size`, with g. */
  function plan(n, { g = 2, size = null, delta = 0.5, pre_thin = "even" } = {}) {
    const published = published_length(n);
    if (pre_thin === "stride") n = published;
    if (size === null) {
      size = coreset_size(n, g);
      if (size < published) n = published;
    }
    return compress_schedule(n, Math.min(n, size), delta);
  }

  /* The first pair of every bucket, and the end of the last. */
  const bucket_bounds = (pairs, buckets) =>
    Array.from({ length: buckets + 1 }, (_, b) => Math.floor((b * pairs) / buckets));

  // ---- Kernels: k(x, y) of two points ---------------------------------------------------------

  const sum_over = (x, term) => {
    let sum = 0;
    for (let j = 0; j < x.length; j++) sum += term(j);
    return sum;
  };
  const product = (x, y) => sum_over(x, (j) => x[j] * y[j]);
  const squared_distance = (x, y) => sum_over(x, (j) => (x[j] - y[j]) ** 2);
  const distance = (x, y) => Math.sqrt(squared_distance(x, y));

  /* Each function takes the bandwidth and returns the kernel, a function of two points. */
  const kernels = {
    gaussian: (h = 1) => (x, y) => Math.exp(-squared_distance(x, y) / (2 * h * h)),
    laplace: (h = 1) => (x, y) => Math.exp(-distance(x, y) / h),
    matern: (h = 1) => (x, y) => {
      const r = (Math.sqrt(3) * distance(x, y)) / h;
      return (1 + r) * Math.exp(-r);
    },
    inverse_multiquadric: (h = 1) => (x, y) => 1 / Math.sqrt(1 + squared_distance(x, y) / (h * h)),
    rational_quadratic: (h = 1) => (x, y) => 1 / (1 + squared_distance(x, y) / (2 * h * h)),
    energy: (h = 1) => (x, y) => -distance(x, y) / h,
    exponential: (h = 1) => (x, y) => Math.exp(product(x, y) / (h * h)),
    polynomial: (h = 1) => (x, y) => (product(x, y) / (h * h) + 1) ** 3,
    linear: () => product,
    sobolev: () => (x, y) => {
      let value = 1;
      for (let j = 0; j < x.length; j++) {
        const t = Math.abs(x[j] - y[j]);
        value *= 1 + 2 * Math.PI ** 2 * (t * t - t + 1 / 6);
      }
      return value - 1;
    },
  };

  /* The attention kernel exp(<k, k'> - shift) (<v, v'> + vmax^2) of keys with values. The shift
     keeps exp from overflowing, and changes no choice. */
  function attention_gram(key, value, vmax) {
    return (bucket) => {
      const shift = Math.max(...bucket.map((p) => product(key[p], key[p])));
      return bucket.map((p) => bucket.map((q) =>
        Math.exp(product(key[p], key[q]) - shift) * (product(value[p], value[q]) + vmax * vmax)));
    };
  }

  // ---- Kernel halving -------------------------------------------------------------------------

  /* Keep one point of every consecutive pair.

     K is the Gram matrix of S points, S even; `uniform` has a draw from [-1, 1) for every pair.
     With `coin` the other half is returned. A generator: it yields the numbers behind each
     decision, and returns the positions that are kept.

       b      |f_i| for f_i = k(x_2i, .) - k(x_2i+1, .)
       a      the threshold
       alpha  <psi, f_i>, the inner product of the walk so far with f_i
       eta    the sign of f_i in the walk: -1 if the pair is swapped */
  function* kernel_halving(K, delta, uniform, coin = false) {
    const S = K.length;
    const G = (i, j) =>
      K[2 * i][2 * j] - K[2 * i][2 * j + 1] - K[2 * i + 1][2 * j] + K[2 * i + 1][2 * j + 1];
    const factor = 0.5 + Math.log((2 * S) / delta);
    const walk = new Float64Array(S / 2); // <psi, f_i> for all i
    const kept = [];
    let b_max = 0;
    for (let i = 0; i < S / 2; i++) {
      const b = Math.sqrt(Math.max(G(i, i), 0)); // rounding can push it below zero
      b_max = Math.max(b_max, b);
      const a = b * b_max * factor;
      const alpha = walk[i];
      // P(swap) = (1 + alpha / a) / 2, clipped to [0, 1]; pair 0 is not swapped
      const swap = i > 0 && uniform[i] * a <= alpha;
      const eta = swap ? -1 : 1;
      for (let j = i + 1; j < S / 2; j++) walk[j] += eta * G(i, j);
      kept.push(2 * i + (swap !== coin ? 1 : 0));
      yield { i, b, a, alpha, u: uniform[i], swap, eta };
    }
    return kept;
  }

  /* Thin n points by repeated halving. `gram` returns the Gram matrix of a list of positions.
     A generator: it yields each decision and, after the last of a bucket, its coin and its half. */
  function* kh_compress(gram, n, rounds, uniforms, coins) {
    let kept = Array.from({ length: n }, (_, p) => p);
    for (const [round, { pairs, buckets, delta }] of rounds.entries()) {
      const bounds = bucket_bounds(pairs, buckets);
      const halves = [];
      for (let b = 0; b < buckets; b++) {
        const [first, last] = [bounds[b], bounds[b + 1]];
        const points = kept.slice(2 * first, 2 * last);
        const coin = coins[round][b];
        const uniform = uniforms[round].slice(first, last);
        const halving = kernel_halving(gram(points), delta, uniform, coin);
        let step = halving.next();
        for (; !step.done; step = halving.next()) {
          yield { kind: "pair", round, bucket: b, points, ...step.value };
        }
        const half = step.value.map((position) => points[position]);
        yield { kind: "bucket", round, bucket: b, points, coin, half };
        halves.push(...half);
      }
      kept = halves;
    }
    return kept;
  }

  /* What a generator returns, without what it yields. */
  function result(steps) {
    let step = steps.next();
    while (!step.done) step = steps.next();
    return step.value;
  }

  // ---- Thinning to the length of the schedule -------------------------------------------------

  /* The published way: positions 0, stride, ... */
  const standard_thin = (S, n) => Array.from({ length: n }, (_, i) => i * Math.floor(S / n));

  /* One position at random from each of n strata of a ring of S positions. */
  function stratified_thin(S, n, uniform) {
    if (n === S) return Array.from({ length: S }, (_, p) => p);
    const start = Math.floor(uniform[0] * S);
    const bounds = bucket_bounds(S, n);
    return bounds.slice(0, n)
      .map((bound, i) => bound + Math.floor(uniform[i + 1] * (bounds[i + 1] - bound)))
      .map((position) => (start + position) % S)
      .sort((p, q) => p - q);
  }

  // ---- What the package calls kernel_halve, kh_compress and the choice of keys ----------------

  /* Positions that kernel halving keeps of a Gram matrix; an odd last point is kept too. */
  function halve(K, { delta = 0.5, seed = 0, draws = null } = {}) {
    const pairs = Math.floor(K.length / 2);
    const schedule = { length: 2 * pairs, size: pairs, rounds: [{ pairs, buckets: 1, delta }] };
    const { uniforms, coins } = draws ?? make_draws(schedule, seed);
    const even = K.slice(0, 2 * pairs);
    const kept = result(kernel_halving(even, delta, uniforms[0], coins[0][0]));
    return K.length % 2 ? [...kept, K.length - 1] : kept;
  }

  /* Positions that KH-Compress keeps of points under a kernel k(x, y). */
  function compress(points, k, { g = 2, size = null, delta = 0.5, seed = 0, draws = null } = {}) {
    const schedule = plan(points.length, { g, size, delta });
    const { uniforms, coins, strata } = draws ?? make_draws(schedule, seed);
    const start = stratified_thin(points.length, schedule.length, strata);
    const chosen = start.map((p) => points[p]);
    const gram = (bucket) => bucket.map((p) => bucket.map((q) => k(chosen[p], chosen[q])));
    const kept = result(kh_compress(gram, start.length, schedule.rounds, uniforms, coins));
    return kept.map((position) => start[position]);
  }

  /* The power of two that brings vmax into [1/2, 1). */
  function power_of_two(vmax) {
    let power = 1;
    while (vmax * power >= 1) power /= 2;
    while (vmax > 0 && vmax * power < 0.5) power *= 2;
    return power;
  }

  /* Positions of the keys of one head that Thinformer keeps. key (S, E) and value (S, D) are arrays
     of rows; `draws`, or a seed with the number of the head. */
  function select(key, value, settings) {
    const { pre_thin = "even", seed = 0, head = 0, draws = null } = settings;
    const S = key.length;
    const schedule = plan(S, settings);
    const { uniforms, coins, strata } = draws ?? make_draws(schedule, seed, head);
    const start = pre_thin === "stride" ? standard_thin(S, schedule.length)
      : stratified_thin(S, schedule.length, strata);
    const root = Math.sqrt(1 / Math.sqrt(key[0].length)); // the root of the softmax scale
    let values = start.map((p) => value[p]);
    const vmax = Math.max(...values.map((v) => Math.max(...v.map(Math.abs))));
    const power = power_of_two(vmax);
    values = values.map((v) => v.map((x) => x * power));
    const keys = start.map((p) => key[p].map((x) => x * root));
    const gram = attention_gram(keys, values, vmax * power);
    const kept = result(kh_compress(gram, start.length, schedule.rounds, uniforms, coins));
    return kept.map((position) => start[position]);
  }

  return {
    mix, head_key, unit_numbers, make_draws,
    published_length, coreset_size, compress_schedule, plan, bucket_bounds,
    kernels, kernel_halving, kh_compress, result, standard_thin, stratified_thin,
    halve, compress, select,
  };
})();

if (typeof module !== "undefined") module.exports = thinformer;
