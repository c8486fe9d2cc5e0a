// The voice prompt: speech in the voice that answers should have.
import { Recorder } from "./recorder.js";
import { setVoice } from "./session.js";
import { $ } from "./view.js";

const MAX_SECONDS = 10;

const recorder = new Recorder($("voice"), MAX_SECONDS, (pcm) => setVoice(pcm, () => recorder.clear()));
