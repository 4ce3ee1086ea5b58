//! Why a request goes where it goes: the same decision as `plan`, with every step told.
