// A typed client of a server: append events, recommend, forget.
//
//     blossomrec openapi > openapi.json
//     npm install && npm run types && npm run build
//     npm start -- http://127.0.0.1:8000 ITEM ITEM ...
//
// Items are ids of the catalogue that the server's run was trained on.
import createClient from "openapi-fetch";

import type { components, paths } from "./api.js";

type ItemId = components["schemas"]["EventIn"]["item"];
type Failed = components["schemas"]["ErrorOut"];

const [baseUrl, ...texts] = process.argv.slice(2);
const token = process.env["BLOSSOMREC_TOKEN"];
const headers = token === undefined ? {} : { Authorization: `Bearer ${token}` };
const client = createClient<paths>({ baseUrl, headers });

function checked<T>(answer: { data?: T; error?: Failed }): T {
  if (answer.data === undefined) {
    throw new Error(answer.error?.error.message ?? "no answer");
  }
  return answer.data;
}

const user_id = "anna";
const items: ItemId[] = texts.map((text) => (/^\d+$/.test(text) ? Number(text) : text));
// With a key, an event that is sent twice is stored once.
const events = items.map((item, number) => ({ item, key: `visit ${number}` }));
const path = { user_id };

const stored = await client.POST("/v1/users/{user_id}/events", {
  params: { path },
  body: { events },
});
console.log("stored:", checked(stored).length);
const found = await client.POST("/v1/recommend", { body: { user_id, k: 3 } });
console.log("recommended:", checked(found).items.map(({ item, score }) => `${item} ${score}`));
const deleted = await client.DELETE("/v1/users/{user_id}", { params: { path } });
console.log("deleted:", checked(deleted).events, "events");
