// Elements with text. Nothing here reads a text as HTML.

/** An element with properties and children; a child that is a text stays one. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
