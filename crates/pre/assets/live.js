// Keeps a part of the page as the server has it, without loading the page anew.

/** Makes `here` equal to `there`, touching only what differs: focus, selection and pictures stay. */
export function morph(here, there) {
  for (const { name } of [...here.attributes]) if (!there.hasAttribute(name)) here.removeAttribute(name);
  for (const { name, value } of there.attributes) if (here.getAttribute(name) !== value) here.setAttribute(name, value);
  const wanted = [...there.childNodes];
  const known = new Map();
  for (const child of here.children) if (child.id) known.set(child.id, child);
  wanted.forEach((want, at) => {
    let have = here.childNodes[at];
    // A row that is known goes where it belongs, so that new ones above it do not rewrite all the others.
    const twin = want.id && known.get(want.id);
    if (twin && twin !== have) {
      here.insertBefore(twin, have ?? null);
      have = twin;
    }
    if (!have) here.append(document.importNode(want, true));
    else if (have.nodeType !== want.nodeType || have.nodeName !== want.nodeName || (have.id ?? '') !== (want.id ?? '')) {
      if (have.id && wanted.slice(at).some((later) => later.id === have.id)) have.before(document.importNode(want, true));
      else have.replaceWith(document.importNode(want, true));
    } else if (want.nodeType === Node.TEXT_NODE) {
      if (have.data !== want.data) have.data = want.data;
    } else if (want.nodeType === Node.ELEMENT_NODE && !have.isEqualNode(want)) morph(have, want);
  });
  while (here.childNodes.length > wanted.length) here.lastChild.remove();
}

/** Fetches this page again and brings the elements of these ids up to date. Answers the new document. */
export async function refresh(...ids) {
  const offline = document.getElementById('offline');
  try {
    const answer = await fetch(location.href, { headers: { accept: 'text/html' }, signal: AbortSignal.timeout(15000) });
    if (answer.redirected || answer.status === 404) {
      // Signed out elsewhere, or deleted: the server's own page says it best.
      location.reload();
      return null;
    }
    if (!answer.ok) throw new Error(answer.statusText);
    const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
    for (const id of ids) {
      const [here, there] = [document.getElementById(id), page.getElementById(id)];
      if (here && there) morph(here, there);
    }
    offline.hidden = true;
    return page;
  } catch {
    offline.hidden = false;
    return null;
  }
}
