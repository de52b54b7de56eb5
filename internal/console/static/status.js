// The state of the connection: in the header, and as a notice when somebody may want to do something about it.

import { $, hue, setText } from './dom.js';

let countdown = 0;

// again(asNewDevice) connects at once; leave(error) goes back to the door.
export function showStatus(state, user, again, leave) {
  const ready = state.name === 'ready';
  const words = {
    idle: 'not connected',
    connecting: 'connecting …',
    registering: state.why ? `waiting: ${state.why.code}` : 'registering …',
    ready: state.degraded ? 'connected, degraded' : 'connected',
    waiting: 'reconnecting …',
    ended: 'disconnected',
  };
  $('state').dataset.state = state.degraded ? 'degraded' : state.name;
  setText($('state'), words[state.name]);
  $('state').title = state.degraded ? 'The gateway can’t reach Redis: messages are refused until it can.' : '';

  $('gateway').hidden = !ready;
  if (ready) {
    const id = state.registered.gatewayId;
    setText($('gateway').querySelector('b'), id);
    $('gateway').style.setProperty('--hue', hue(id));
  }

  clearInterval(countdown);
  if (state.name === 'waiting') {
    // The seconds are on the button: the text is an alert, read out at each change.
    const tick = () => {
      const s = Math.max(0, Math.ceil((state.at - Date.now()) / 1000));
      showNotice(`Connection lost: ${reason(state.why)}. Trying again.`, s > 0 ? `Try now (${s} s)` : 'Try now', () => again());
    };
    tick();
    countdown = setInterval(tick, 1000);
  } else if (state.name === 'ended') {
    ended(state.why, user, again, leave);
  } else if (ready || state.name === 'idle') {
    showNotice('');
  }
}

// The gateway said not to come back, so only a person can.
function ended(why, user, again, leave) {
  if (why.code === 0) return leave(`The gateway doesn’t let “${user}” in: ${why.reason || why.name}`);
  if (why.code === 4502) {
    showNotice(
      `“${user}” was opened elsewhere on this device (a duplicate of this tab, perhaps), or in one tab more than a user may have. The newest one stays: ${reason(why)}.`,
      'Connect here as a new device',
      () => again(true),
    );
  } else {
    showNotice(`The gateway ended this connection for good: ${reason(why)}.`, 'Connect again', () => again());
  }
}

function reason(why) {
  const text = why.reason || { 1001: 'the gateway goes away', 1006: 'the line was cut', 1011: 'an error in the gateway' }[why.code] || '';
  return `${text}${text ? ' ' : ''}(${why.code}${why.by ? `, by ${why.by}` : ''})`;
}

function showNotice(text, label, run) {
  $('notice').hidden = !text;
  setText($('notice').querySelector('p'), text);
  const button = $('notice').querySelector('button');
  setText(button, label ?? '');
  button.onclick = run;
}
