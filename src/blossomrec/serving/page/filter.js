// The filter: which items may be recommended, by an expression over the table of items.
import { byId } from "./elements.js";

// columns: of the table of items; ids alone are there without one.
export function offerFilter(columns) {
  byId("by-filter").hidden = columns.length < 2;
  byId("columns").textContent = `Columns: ${columns.join(", ")}.`;
}

// What a request says of the items that may be recommended.
export function filtered() {
  const filter = byId("filter").value.trim();
  return byId("by-filter").hidden || filter === "" ? {} : { filter };
}
