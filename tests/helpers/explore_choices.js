/* The positions that thinformer.js keeps in the cases of explore_cases.py.

   node explore_choices.js FOLDER CASES prints them; in a page the function `choices` is there. */
"use strict";

function choices(body, cases) {
  const ofKind = {
    halve: (given) => body.halve(given.K, given),
    points: (given) =>
      body.compress(given.points, body.kernels[given.kernel](given.bandwidth), given.settings),
    attention: (given) => body.select(given.key, given.value, given.settings),
  };
  return cases.map((given) => ofKind[given.kind](given));
}

if (typeof module !== "undefined") {
  const [folder, cases] = process.argv.slice(2);
  const body = require(`${folder}/thinformer.js`);
  console.log(JSON.stringify(choices(body, JSON.parse(require("fs").readFileSync(cases)))));
}
