//! Repairs what CRIU loses of periodic timers.
//!
//! A timerfd on the monotonic clock that expired while nobody read it is dumped with its value 0 ("disarmed") although
//! its interval is set, and never fires again after the restore. Holding a pod makes that certain for every period
//! shorter than the hold. Such a timer gets one full interval: it fires again, at most one period late.
//!
//! Images are two magic numbers and then entries of a length and a protobuf message. CRIU keeps timers in a file of
//! their own (`timerfd.img`) or, later, among all other files (`files.img`, field 12 of an entry). Doubt of any kind
//! leaves the image as it is: an unrepaired timer is a smaller loss than a failed restore.

/// The first word of every image since CRIU 2.
const IMAGE_MAGIC: u32 = 0x5456_4319;
/// Where `file_entry` keeps a timer.
const FILE_ENTRY_TIMER: u64 = 12;
/// Fields of `timerfd_entry`: seconds and nanoseconds of the value, then of the interval.
const VALUE: [u64; 2] = [7, 8];
const INTERVAL: [u64; 2] = [9, 10];

/// The image with its timers repaired; `None` when there is nothing to repair or it is not understood.
pub fn repair_timers(image: &[u8]) -> Option<Vec<u8>> {
    repair(image, repair_timer)
}

/// The same for the image of all files.
pub fn repair_files(image: &[u8]) -> Option<Vec<u8>> {
    repair(image, repair_file)
}

/// An entry's new bytes; `Ok(None)` when it stays as it is.
type Repaired = Result<Option<Vec<u8>>, Unclear>;

/// The image is not what it should be: leave it.
struct Unclear;

fn repair(image: &[u8], entry: fn(&[u8]) -> Repaired) -> Option<Vec<u8>> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?));
    if word(0)? != IMAGE_MAGIC {
        return None;
    }
    let mut out = image.get(..8)?.to_vec();
    let mut at = 8;
    let mut changed = false;
    while at < image.len() {
        let length = usize::try_from(word(at)?).ok()?;
        let message = image.get(at + 4..(at + 4).checked_add(length)?)?;
        let repaired = entry(message).ok()?;
        changed |= repaired.is_some();
        let message = repaired.as_deref().unwrap_or(message);
        out.extend_from_slice(&u32::try_from(message.len()).ok()?.to_le_bytes());
        out.extend_from_slice(message);
        at += 4 + length;
    }
    changed.then_some(out)
}

fn repair_file(message: &[u8]) -> Repaired {
    let fields = fields(message)?;
    let Some(timer) = fields.iter().find(|field| field.number == FILE_ENTRY_TIMER) else {
        return Ok(None);
    };
    let Content::Bytes(content) = timer.content else {
        return Err(Unclear);
    };
    let Some(repaired) = repair_timer(content)? else {
        return Ok(None);
    };
    let mut out = message[..timer.start].to_vec();
    put_varint(&mut out, FILE_ENTRY_TIMER << 3 | 2);
    put_varint(&mut out, repaired.len() as u64);
    out.extend_from_slice(&repaired);
    out.extend_from_slice(&message[timer.end..]);
    Ok(Some(out))
}

fn repair_timer(message: &[u8]) -> Repaired {
    let fields = fields(message)?;
    let number = |wanted: u64| {
        let mut found = fields.iter().filter(|field| field.number == wanted);
        match (found.next().map(|field| &field.content), found.next()) {
            (Some(Content::Number(value)), None) => Ok(*value),
            _ => Err(Unclear),
        }
    };
    let value = [number(VALUE[0])?, number(VALUE[1])?];
    let interval = [number(INTERVAL[0])?, number(INTERVAL[1])?];
    if value != [0, 0] || interval == [0, 0] {
        return Ok(None);
    }
    let mut out = Vec::with_capacity(message.len() + 16);
    for field in &fields {
        match VALUE.iter().position(|wanted| *wanted == field.number) {
            Some(index) => {
                put_varint(&mut out, field.number << 3);
                put_varint(&mut out, interval[index]);
            }
            None => out.extend_from_slice(&message[field.start..field.end]),
        }
    }
    Ok(Some(out))
}

struct Field<'a> {
    number: u64,
    start: usize,
    end: usize,
    content: Content<'a>,
}

enum Content<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn fields(message: &[u8]) -> Result<Vec<Field<'_>>, Unclear> {
    let mut fields = Vec::new();
    let mut at = 0;
    while at < message.len() {
        let start = at;
        let tag = varint(message, &mut at)?;
        let content = match tag & 7 {
            0 => Content::Number(varint(message, &mut at)?),
            1 => Content::Bytes(bytes(message, &mut at, 8)?),
            2 => {
                let length = varint(message, &mut at)?;
                Content::Bytes(bytes(message, &mut at, length)?)
            }
            5 => Content::Bytes(bytes(message, &mut at, 4)?),
            _ => return Err(Unclear),
        };
        fields.push(Field {
            number: tag >> 3,
            start,
            end: at,
            content,
        });
    }
    Ok(fields)
}

fn bytes<'a>(message: &'a [u8], at: &mut usize, length: u64) -> Result<&'a [u8], Unclear> {
    let end = usize::try_from(length)
        .ok()
        .and_then(|length| at.checked_add(length))
        .ok_or(Unclear)?;
    let found = message.get(*at..end).ok_or(Unclear)?;
    *at = end;
    Ok(found)
}

fn varint(message: &[u8], at: &mut usize) -> Result<u64, Unclear> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *message.get(*at).ok_or(Unclear)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Unclear)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}
