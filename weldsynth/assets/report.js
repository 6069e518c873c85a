'use strict';
/* A figure opens enlarged on a click or Enter. Escape, a click beside it or its button closes it, and the focus returns. */
(() => {
  const element = (name, properties, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  const shown = element('img', {alt: ''});
  const caption = element('p', {className: 'caption', tabIndex: 0});
  const view = element('div', {className: 'view', tabIndex: 0}, shown);
  view.setAttribute('role', 'region');
  view.setAttribute('aria-label', 'Enlarged figure');
  const close = element('button', {type: 'button', textContent: 'Close', autofocus: true});
  const box = element('dialog', {className: 'lightbox'}, close, view, caption);
  box.setAttribute('aria-label', 'Figure');
  close.onclick = () => box.close();
  box.onclick = event => { if (event.target === box) box.close(); };
  document.body.append(box);
  for (const image of document.querySelectorAll('main .figure > img')) {
    const button = element('button', {type: 'button', className: 'enlarge', title: 'Enlarge'});
    button.setAttribute('aria-haspopup', 'dialog');
    image.replaceWith(button);
    button.append(image);
    button.onclick = () => {
      const text = image.closest('.float')?.querySelector('.caption');
      Object.assign(shown, {src: image.src, alt: image.alt});
      caption.replaceChildren(...(text ? text.cloneNode(true).childNodes : []));
      box.showModal();
    };
  }
})();
/* The menu beside the page shows the chapter that is open. */
{
  const menu = document.querySelector('.top'), here = document.querySelector('.side [aria-current]');
  if (menu && here) menu.scrollTop = here.offsetTop - menu.clientHeight/2;
}
/* A table that fits after all does not say that it scrolls. */
{
  const fit = () => document.querySelectorAll('.scroll.wide').forEach(
    frame => frame.classList.toggle('fits', frame.scrollWidth <= frame.clientWidth));
  addEventListener('resize', fit);
  document.addEventListener('toggle', fit, true);
  fit();
}
